"""DPM-Solver-12 and DPM-Solver-23: exponential integrators that choose their own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine import options
from cmsolvers.engine.adaptive.control import FilterControl, scaled_error
from cmsolvers.engine.adaptive.loop import AdaptiveInfo, Settings
from cmsolvers.engine.adaptive.method import Method, Model, Outcome, SampleNoise, Step
from cmsolvers.engine.adaptive.solver import read_levels, run, solver, tolerances
from cmsolvers.engine.forms import Form
from cmsolvers.engine.live import held
from cmsolvers.engine.options import S_NOISE, Option

if TYPE_CHECKING:
    from cmsolvers.checks import Levels
    from cmsolvers.denoisers.protocol import Denoiser


@dataclass(frozen=True)
class Ancestral:
    """The noise of ancestral steps.

    Attributes:
        eta: share of the step's variance that is fresh noise, positive.
        s_noise: factor on the noise.
        noise: of the batch.
        t_end: where the run ends.
    """

    eta: float
    s_noise: float
    noise: SampleNoise
    t_end: float

    def down(self, step: Step) -> Tensor:
        """The part of a step that the ODE takes, all but the variance that noise will bring.

        It leads to sigma_down = sigma e^-h, but not below the last level.
        """
        h = step.h - 0.5 * torch.log1p(self.eta**2 * torch.expm1(-2.0 * step.h))
        return torch.minimum(h, self.t_end - step.t)

    def kick(self, step: Step, h: Tensor) -> Form:
        """Up to the level of t_next: sqrt(sigma_next^2 - sigma_down^2) z."""
        more = (h - step.h).clamp_min(0.0)
        spread = torch.exp(-step.t_next) * torch.sqrt(-torch.expm1(-2.0 * more)) * self.s_noise
        if self.noise.built_in:
            z = self.noise.fresh(step.lanes)
        else:
            levels = torch.exp(-step.t), torch.exp(-step.t_next)
            z = self.noise.sampled(step.lanes, *levels, math.exp(-self.t_end))
        return spread * held(z, "z")


class DPMSolver(Method):
    """Steps of DPM-Solver in t = -ln sigma, two orders at once.

    Args:
        order: of the result, 2 or 3; the comparison is one lower.
        model: D.
        rtol: relative tolerance.
        atol: absolute tolerance.
        ancestral: the noise; None for the ODE.
    """

    name = "dpm_adaptive"
    remembers = True

    def __init__(
        self,
        order: int,
        model: Model,
        *,
        rtol: float,
        atol: float,
        ancestral: Ancestral | None = None,
    ) -> None:
        self.model, self._order = model, order
        self._rtol, self._atol, self._ancestral = rtol, atol, ancestral
        self.evaluations = order - 1

    def level(self, t: Tensor) -> Tensor:
        """Sigma."""
        return torch.exp(-t)

    def place(self, level: float) -> float:
        """The t of a sigma."""
        return -math.log(level)

    def attempt(self, step: Step) -> Outcome:
        """Both orders over the part of the step that the ODE takes, then the noise."""
        noisy = self._ancestral
        h = step.h if noisy is None else noisy.down(step)
        high, low = (_second if self._order == 2 else _third)(_Stages(step, h))
        compared = step.value(low)
        wrong = step.value(low - high)
        new = step.value(high if noisy is None else high + noisy.kick(step, h))
        error = scaled_error(
            wrong, compared, step.previous, rtol=self._rtol, atol=self._atol, larger=True
        )
        return Outcome(new, error, previous=compared.detach())


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


@dataclass(frozen=True)
class DPMSettings(Settings):
    """With the options of `dpm_adaptive`."""

    order: int
    h_init: float
    pcoeff: float
    icoeff: float
    dcoeff: float
    accept_safety: float
    eta: float
    s_noise: float


def _order(_: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in (2, 3):
        raise ValueError(f"order must be 2 or 3; got {value!r}")
    return value


def _safety(name: str, value: object) -> float:
    number = check.real(name, value)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must lie in (0, 1]; got {number:g}")
    return number


OPTIONS = (
    Option("order", 3, _order, "2 or 3.", Literal[2, 3]),
    *tolerances(0.05, 0.0078),
    Option("h_init", 0.05, check.positive, "first step size in -ln sigma, positive."),
    Option(
        "pcoeff",
        0.0,
        check.non_negative,
        "proportional part of the step size control, not negative.",
    ),
    Option(
        "icoeff",
        1.0,
        check.non_negative,
        "integral part, not negative; pcoeff + icoeff + dcoeff must be positive.",
    ),
    Option("dcoeff", 0.0, check.non_negative, "derivative part, not negative."),
    Option(
        "accept_safety",
        0.81,
        _safety,
        "a step is accepted if the step size would change by at least this factor; in (0, 1].",
    ),
    options.eta(
        0.0,
        "0 is the ODE, 1 an ancestral step: the ODE goes down to sigma_down and noise up to "
        "sigma_next; in [0, 1]. Near the end sigma_down is cut at the last level. An ancestral "
        "step keeps the law of x for a step size that x has no part in; chosen by x, the law is "
        "right to the first order in the step only, which the error estimate does not see: for "
        "statistics use a small tolerance.",
        share=True,
    ),
    S_NOISE,
)


@solver(
    DPMSettings,
    OPTIONS,
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
    With a denoiser that treats samples apart, a sample's result does not depend on its companions,
    to the bit, noise included: the k-th accepted step of a sample uses draw k of stream 1, also in
    the tries before.

    Source: Lu et al., "DPM-Solver" (2022), algorithms 1 and 2 and appendix C; Soderlind & Wang
    (2006) for the step size control; ancestral steps as in Song et al. (2021), "DDIM", eq. 16.
    """
    check.function("denoiser", denoiser)
    grid = read_levels(sigmas, settings.trajectory)
    parts = {"pcoeff": settings.pcoeff, "icoeff": settings.icoeff, "dcoeff": settings.dcoeff}
    check.positive(" + ".join(parts), sum(parts.values()))
    noise = SampleNoise(settings.seed, x, settings.noise_sampler, wanted=settings.eta > 0)
    t_end = -math.log(grid.stops[-1])
    steps = DPMSolver(
        settings.order,
        Model("denoiser", denoiser, x.dtype, look=settings.check_nan),
        rtol=settings.rtol,
        atol=settings.atol,
        ancestral=Ancestral(settings.eta, settings.s_noise, noise, t_end) if settings.eta else None,
    )
    control = FilterControl(settings.order, **parts, accept_safety=settings.accept_safety)
    return run(steps, control, x, grid, settings, settings.h_init)
