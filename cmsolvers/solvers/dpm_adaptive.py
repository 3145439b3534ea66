"""DPM-Solver-12 and DPM-Solver-23: exponential integrators that choose their own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.adaptive.control import FilterControl, scaled_error
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
from cmsolvers.engine.options import S_NOISE, chosen, option
from cmsolvers.engine.options import eta as eta_option
from cmsolvers.processes.coordinates import KARRAS, Coordinates, coordinates_of

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
    tolerance: str = option(
        "result",
        chosen("result", "published"),
        'what the error of a step is held against. "result": max(atol, rtol max(|x|, sigma)) where '
        'the step ends, and with order 3 by two estimates. "published": max(atol, rtol max(|x|, '
        "|x before|)) and one estimate, as in the paper; x shrinks with sigma, and a large step "
        "then passes with an error of more than its result.",
    )
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

    def __init__(
        self,
        model: Model,
        settings: DPMSettings,
        noise: SampleNoise,
        t_end: float,
        path: Coordinates = KARRAS,
    ) -> None:
        super().__init__(model, settings)
        self._order, self._eta, self._s_noise = settings.order, settings.eta, settings.s_noise
        self._noise, self._t_end, self._path = noise, t_end, path
        self.remembers = settings.tolerance == "published"
        self.evaluations = settings.order - 1

    def level(self, t: Tensor) -> Tensor:
        return torch.exp(-t)

    def place(self, level: float) -> float:
        return -math.log(level)

    def attempt(self, step: Step) -> Outcome:
        """Both orders over the part of the step that the ODE takes, then the noise."""
        h = self._down(step) if self._eta else step.h
        pair = (_second if self._order == 2 else _third)(_Stages(step, h, self._path))
        error, previous = self._published(step, pair) if self.remembers else self._own(step, pair)
        new = step.value(self._lifted(step, h, pair.high) if self._eta else pair.high)
        return Outcome(new, error, previous=previous)

    def _published(self, step: Step, pair: _Pair) -> tuple[Tensor, Tensor]:
        """The error against the lower order's states here and one step before, and the former."""
        compared = step.value(pair.low)
        wrong = step.value(pair.low - pair.high)
        return self.norm(wrong, compared, step.previous), compared.detach()

    def _own(self, step: Step, pair: _Pair) -> tuple[Tensor, None]:
        """The error against max(atol, rtol max(|x|, sigma)) where the step ends.

        That bounds what is left of it at the end of the run. On data N(0, s^2) the ODE takes x and
        an error from sigma to e times the same factor sqrt((s^2 + e^2) / (s^2 + sigma^2)) <= 1:
        rtol |x| becomes rtol |x|, rtol sigma at most rtol sqrt(s^2 + e^2), atol at most atol. The
        state before the step can be e^h times larger. The noise is left out: a draw would decide
        on its own step.
        """
        new = step.value(pair.high)
        level = self.level(step.t_next).to(new).reshape(-1, *[1] * (new.dim() - 1))
        rtol, atol = self.settings.rtol, self.settings.atol
        sizes = [
            scaled_error(step.value(wrong), new, level, rtol=rtol, atol=atol, larger=True)
            for wrong in (pair.low - pair.high, *pair.more)
        ]
        return torch.stack(sizes).amax(0), None

    def _down(self, step: Step) -> Tensor:
        """What the ODE takes of a step: all but the variance that noise will bring.

        It leads to sigma_down = sigma e^-h, but not below the last level. From where no data is
        left the ODE takes all: fresh noise would change nothing of the law.
        """
        if self._path.karras:
            h = step.h - 0.5 * torch.log1p(self._eta**2 * torch.expm1(-2.0 * step.h))
        else:
            ratio, after = (self._path.ratio(self.level(t)) for t in (step.t, step.t_next))
            share = self._eta**2 * (1.0 - (after / ratio) ** 2)
            down = self._path.level(after * torch.sqrt((1.0 - share).clamp_min(0.0)))
            h = torch.where(ratio.isinf(), step.h, -torch.log(down) - step.t)
        return torch.minimum(h, self._t_end - step.t)

    def _lifted(self, step: Step, h: Tensor, y: Form) -> Form:
        """From the end of the ODE's part up to the level of t_next, by noise."""
        sigma, sigma_next = self.level(step.t), self.level(step.t_next)
        more = (h - step.h).clamp_min(0.0)
        if self._path.karras:
            spread = sigma_next * torch.sqrt(-torch.expm1(-2.0 * more))
        else:
            down = self.level(step.t + h)
            low, high = self._path.ratio(down), self._path.ratio(sigma_next)
            alpha = self._path.alpha(sigma_next)
            y = torch.where(more > 0.0, alpha / self._path.alpha(down), 1.0) * y
            up = torch.sqrt(((high - low) * (high + low)).clamp_min(0.0))
            spread = torch.where(more > 0.0, alpha * up, 0.0)
        spread = spread * self._s_noise
        if self._noise.built_in:
            return y + spread * held(self._noise.fresh(step.lanes))
        last = math.exp(-self._t_end)
        return y + spread * held(self._noise.sampled(step.lanes, sigma, sigma_next, last))


class _Stages:
    """A step of size h from x: what its formulas are made of, with alpha = 1.

    In Karras coordinates sigma_r (e^(r h) - 1) is -sigma (e^(-r h) - 1). In others sigma is the
    level, and eps the slope dx/dlevel: the same equation.
    """

    def __init__(self, step: Step, h: Tensor, path: Coordinates) -> None:
        self._step, self._h, self._sigma = step, h, torch.exp(-step.t)
        self.x, self._path = step.x, path

    def eps(self, y: Form, r: float = 0.0) -> Form:
        """(y - D) / sigma_r, at the share r of the step."""
        sigma = self._sigma * torch.exp(-r * self._h) if r else self._sigma
        slope: Form = self._path.slope(y, self._step.output(y, sigma), sigma)
        return slope

    def first(self, r: float = 1.0) -> Tensor:
        """-sigma_r (e^(r h) - 1)."""
        return self._sigma * torch.expm1(-r * self._h)

    def second(self, r: float = 1.0) -> Tensor:
        """-sigma_r ((e^(r h) - 1) / (r h) - 1), 0 at h = 0."""
        size = r * self._h
        value = self.first(r) / size + self._sigma * torch.exp(-size)
        return torch.where(size > 0, value, 0.0)


class _Pair(NamedTuple):
    """A step of two orders, and further estimates of the lower one's error."""

    high: Form
    low: Form
    more: tuple[Form, ...] = ()


def _second(s: _Stages) -> _Pair:
    """Algorithm 1 with r = 1/2, and DPM-Solver-1."""
    r = 1 / 2
    e = s.eps(s.x)
    d = s.eps(s.x + s.first(r) * e, r) - e
    low = s.x + s.first() * e
    return _Pair(low + s.first() / (2 * r) * d, low)


def _third(s: _Stages) -> _Pair:
    """Algorithm 2 with r_1 = 1/3 and r_2 = 2/3, and algorithm 1 with r = r_1.

    Their difference alone is blind. On data N(0, s^2), with u = (s / sigma)^2, it is
    x h^3 u^2 / (6 (1 + u)^3) to leading order, which a term in h^4 u outweighs where sigma is above
    s: somewhere there it vanishes, for all elements at once, and any step passes. What the
    curvature of eps adds, x h^3 u (1 - u) / (12 (1 + u)^3), vanishes elsewhere, near sigma = s.
    """
    r_1, r_2 = 1 / 3, 2 / 3
    e = s.eps(s.x)
    d_1 = s.eps(s.x + s.first(r_1) * e, r_1) - e
    u = s.x + s.first(r_2) * e + s.second(r_2) * (r_2 / r_1) * d_1
    d_2 = s.eps(u, r_2) - e
    straight = s.x + s.first() * e
    high, low = straight + s.second() / r_2 * d_2, straight + s.first() / (2 * r_1) * d_1
    return _Pair(high, low, (s.second() / r_2 * d_2 - s.second() / r_1 * d_1,))


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
    On samples of 64 elements, Gaussian data of spread 0.05 to 5 and mixtures, from sigma = 10 to
    10,000 down to 0.002, the error of the result (root mean square over a sample) was at most 1.3
    (rtol |x| + atol) with order 3, 3 (rtol |x| + atol) with order 2, for rtol from 0.05 to 1e-4;
    the defaults took 20 to 50 evaluations. An error on the border of two modes is magnified by the
    ODE itself. With `tolerance="published"`, at the defaults, it could be more than |x|.
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
    t_end, path = -math.log(grid.stops[-1]), coordinates_of(denoiser)
    steps = DPMSolver(model, settings, noise, t_end, path)
    # With eta > 0 too: from a given x the error of the part that the ODE takes is of that order.
    control = FilterControl(settings.order, **parts, accept_safety=settings.accept_safety)
    return run(steps, control, x, grid, settings.h_init)
