"""DPM-Solver-12 and DPM-Solver-23: exponential integrators that choose their own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.adaptive.control import FilterControl
from cmsolvers.engine.adaptive.loop import run
from cmsolvers.engine.adaptive.method import Method, Model, Outcome, SampleNoise, Step
from cmsolvers.engine.adaptive.settings import (
    ATOL,
    PCOEFF,
    RTOL,
    Settings,
    fraction,
    like,
    read_levels,
    solver,
)
from cmsolvers.engine.forms import Form
from cmsolvers.engine.live import held
from cmsolvers.engine.observers import AdaptiveInfo
from cmsolvers.engine.options import S_NOISE, option
from cmsolvers.engine.options import eta as eta_option

if TYPE_CHECKING:
    from cmsolvers.checks import Levels
    from cmsolvers.denoisers.protocol import Denoiser


def _order(_: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in (2, 3):
        raise ValueError(f"order must be 2 or 3; got {check.describe(value)}")
    return value


@dataclass(frozen=True)
class DPMSettings(Settings):
    """The options of `dpm_adaptive`."""

    order: int = option(3, _order, "order of the result, 2 or 3.")
    rtol: float = option(0.05, check.non_negative, RTOL)
    atol: float = option(0.0078, check.positive, ATOL)
    h_init: float = option(0.05, check.positive, "first step size in -ln sigma, positive.")
    pcoeff: float = option(0.0, check.non_negative, PCOEFF)
    icoeff: float = option(
        1.0,
        check.non_negative,
        "integral part, not negative; pcoeff + icoeff + dcoeff must be positive.",
    )
    dcoeff: float = option(0.0, check.non_negative, "derivative part, not negative.")
    accept_safety: float = option(
        0.81,
        partial(fraction, one=True),
        "a step is accepted if the step size would change by at least this factor; in (0, 1].",
    )
    eta: float = like(
        eta_option(
            0.0,
            "0 is the ODE, 1 an ancestral step: the ODE goes down to sigma_down and noise up to "
            "sigma_next; in [0, 1]. Near the end sigma_down is cut at the last level. With a "
            "step size that does not depend on x, an ancestral step keeps the distribution of x. "
            "Here it does depend on x: the distribution is right to first order in the step, and "
            "the error estimate does not see this. Use a small tolerance for statistics.",
            share=True,
        )
    )
    s_noise: float = like(S_NOISE)


class DPMSolver(Method):
    """Steps of DPM-Solver in t = -ln sigma, two orders at once; the run ends at `t_end`."""

    name = "dpm_adaptive"
    remembers = True

    def __init__(
        self, model: Model, settings: DPMSettings, noise: SampleNoise, t_end: float
    ) -> None:
        super().__init__(model, settings)
        self._order, self._eta, self._s_noise = settings.order, settings.eta, settings.s_noise
        self._noise, self._t_end = noise, t_end
        self.evaluations = settings.order - 1

    def level(self, t: Tensor) -> Tensor:
        return torch.exp(-t)

    def place(self, level: float) -> float:
        return -math.log(level)

    def attempt(self, step: Step) -> Outcome:
        """Both orders over the part of the step that the ODE takes, then the noise."""
        h = self._down(step) if self._eta else step.h
        high, low = (_second if self._order == 2 else _third)(_Stages(step, h))
        compared = step.value(low)
        wrong = step.value(low - high)
        new = step.value(high + self._kick(step, h) if self._eta else high)
        return Outcome(new, self.norm(wrong, compared, step.previous), previous=compared.detach())

    def _down(self, step: Step) -> Tensor:
        """What the ODE takes of a step: all but the variance that noise will bring.

        It leads to sigma_down = sigma e^-h, but not below the last level.
        """
        h = step.h - 0.5 * torch.log1p(self._eta**2 * torch.expm1(-2.0 * step.h))
        return torch.minimum(h, self._t_end - step.t)

    def _kick(self, step: Step, h: Tensor) -> Form:
        """Up to the level of t_next: sqrt(sigma_next^2 - sigma_down^2) z."""
        sigma, sigma_next = self.level(step.t), self.level(step.t_next)
        more = (h - step.h).clamp_min(0.0)
        spread = sigma_next * torch.sqrt(-torch.expm1(-2.0 * more)) * self._s_noise
        if self._noise.built_in:
            return spread * held(self._noise.fresh(step.lanes))
        last = math.exp(-self._t_end)
        return spread * held(self._noise.sampled(step.lanes, sigma, sigma_next, last))


class _Stages:
    """A step of size h from x: what its formulas are made of, with alpha = 1.

    In the coordinates of the library sigma_r (e^(r h) - 1) is -sigma (e^(-r h) - 1).
    """

    def __init__(self, step: Step, h: Tensor) -> None:
        self._step, self._h, self._sigma = step, h, torch.exp(-step.t)
        self.x = step.x

    def eps(self, y: Form, r: float = 0.0) -> Form:
        """(y - D) / sigma_r, at the share r of the step."""
        sigma = self._sigma * torch.exp(-r * self._h) if r else self._sigma
        return (y - self._step.output(y, sigma)) / sigma

    def first(self, r: float = 1.0) -> Tensor:
        """-sigma_r (e^(r h) - 1)."""
        return self._sigma * torch.expm1(-r * self._h)

    def second(self, r: float = 1.0) -> Tensor:
        """-sigma_r ((e^(r h) - 1) / (r h) - 1), 0 at h = 0."""
        size = r * self._h
        value = self.first(r) / size + self._sigma * torch.exp(-size)
        return torch.where(size > 0, value, 0.0)


def _second(s: _Stages) -> tuple[Form, Form]:
    """Algorithm 1 with r = 1/2, and DPM-Solver-1."""
    r = 1 / 2
    e = s.eps(s.x)
    d = s.eps(s.x + s.first(r) * e, r) - e
    low = s.x + s.first() * e
    return low + s.first() / (2 * r) * d, low


def _third(s: _Stages) -> tuple[Form, Form]:
    """Algorithm 2 with r_1 = 1/3 and r_2 = 2/3, and algorithm 1 with r = r_1."""
    r_1, r_2 = 1 / 3, 2 / 3
    e = s.eps(s.x)
    d_1 = s.eps(s.x + s.first(r_1) * e, r_1) - e
    u = s.x + s.first(r_2) * e + s.second(r_2) * (r_2 / r_1) * d_1
    d_2 = s.eps(u, r_2) - e
    straight = s.x + s.first() * e
    return straight + s.second() / r_2 * d_2, straight + s.first() / (2 * r_1) * d_1


@solver(
    DPMSettings,
    order="2 or 3 (order)",
    noise="fresh",
    source="Lu et al., DPM-Solver (2022), algorithms 1 and 2 and appendix C",
)
def dpm_adaptive(
    denoiser: Denoiser, x: Tensor, sigmas: Levels, settings: DPMSettings
) -> tuple[Tensor, AdaptiveInfo]:
    """DPM-Solver with steps in -ln sigma that each sample chooses for itself.

    DPM-Solver-12 (order 2) or DPM-Solver-23 (order 3): the result has that order, its difference
    from the order below is the error. A try costs 2 or 3 evaluations, one less after a rejection.
    With a denoiser that processes each sample independently, a sample's result does not depend on
    the others of the batch, to the bit, noise included: the k-th accepted step of a sample uses
    draw k of stream 1, also in the tries before.

    Source: Lu et al., "DPM-Solver" (2022), algorithms 1 and 2 and appendix C; Soderlind & Wang
    (2006) for the step size control; ancestral steps as in Song et al. (2021), "DDIM", eq. 16.
    """
    check.function("denoiser", denoiser)
    grid = read_levels(sigmas, settings)
    parts = {"pcoeff": settings.pcoeff, "icoeff": settings.icoeff, "dcoeff": settings.dcoeff}
    check.positive(" + ".join(parts), sum(parts.values()))
    noise = SampleNoise(settings, x, wanted=settings.eta > 0)
    model = Model("denoiser", denoiser, x.dtype, look=settings.check_nan)
    steps = DPMSolver(model, settings, noise, t_end=-math.log(grid.stops[-1]))
    control = FilterControl(settings.order, **parts, accept_safety=settings.accept_safety)
    return run(steps, control, x, grid, settings.h_init)
