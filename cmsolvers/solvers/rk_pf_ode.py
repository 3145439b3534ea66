"""Embedded Runge-Kutta pairs on the probability-flow ODE, each sample with its own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.adaptive.control import PIControl
from cmsolvers.engine.adaptive.loop import Run, run
from cmsolvers.engine.adaptive.method import Method, Model, Outcome, SampleNoise, Step
from cmsolvers.engine.adaptive.settings import (
    PCOEFF,
    SAFETY,
    Grid,
    Settings,
    checked,
    fraction,
    optional,
    read_levels,
    solver,
)
from cmsolvers.engine.forms import Form, weighed
from cmsolvers.engine.observers import AdaptiveInfo, Recorder
from cmsolvers.engine.options import chosen, option
from cmsolvers.ops.norms import root_mean_square
from cmsolvers.processes.coordinates import KARRAS, Coordinates, coordinates_of
from cmsolvers.solvers.tableaux import TABLEAUX, Tableau

if TYPE_CHECKING:
    from cmsolvers.checks import Levels
    from cmsolvers.denoisers.protocol import Denoiser


@dataclass(frozen=True)
class RungeKuttaSettings(Settings):
    """The options of `rk_pf_ode`."""

    method: str = option(
        "dopri54", chosen(*TABLEAUX), 'the pair: "heun21", "bosh32", "dopri54" or "tsit54".'
    )
    coordinate: str = option(
        "log_sigma",
        chosen("log_sigma", "sigma"),
        "what steps are measured in: the logarithm of the level, or the level. The pairs of order "
        '5 are more efficient in "log_sigma", the others in "sigma".',
    )
    safety: float = option(0.9, fraction, SAFETY)
    pcoeff: float = option(0.2, check.non_negative, PCOEFF)
    icoeff: float = option(
        0.65,
        check.positive,
        "integral part, positive. The exponents of the error and of the previous error are "
        "(pcoeff + icoeff)/k and pcoeff/k with k one more than the lower order; the defaults are "
        "those of DOPRI5. pcoeff = 0, icoeff = 1 is the elementary control.",
    )
    first_step: float | None = option(
        None,
        optional(check.positive),
        "first step size in the coordinate, positive; None finds one.",
    )


class RungeKutta(Method):
    """A pair on dx/dt: t is sigma and the slope (x - D) / sigma, or ln sigma and it is x - D.

    Sigma is the level, whatever the coordinates.
    """

    def __init__(
        self,
        tableau: Tableau,
        model: Model,
        settings: RungeKuttaSettings,
        name: str = "rk_pf_ode",
        path: Coordinates = KARRAS,
    ) -> None:
        super().__init__(model, settings)
        self.name, self.tableau, self._path = name, tableau, path
        self._log = settings.coordinate == "log_sigma"
        self.reuses_last = tableau.reuses_last
        self.evaluations = len(tableau.a)

    def level(self, t: Tensor) -> Tensor:
        return torch.exp(t) if self._log else t

    def place(self, level: float) -> float:
        return math.log(level) if self._log else level

    def slope(self, step: Step, y: Form, t: Tensor) -> Form:
        """dx/dt at y."""
        sigma = self.level(t)
        d = step.output(y, sigma)
        if self._log and self._path.straight:
            return y - d
        slope: Form = self._path.slope(y, d, sigma)
        return sigma * slope if self._log else slope

    def attempt(self, step: Step) -> Outcome:
        """y_k = x + h sum_j a_kj f_j and x' = x + h sum_j b_j f_j; the error has b - b_low."""
        table, x, h = self.tableau, step.x, step.h
        f = [self.slope(step, x, step.t)]
        y = x
        for c, a in zip(table.c[1:], table.a, strict=True):
            y = x + h * weighed(a, f)
            f.append(self.slope(step, y, step.t_next if c == 1 else step.t + c * h))
        if not table.reuses_last:  # else it is the last y
            y = x + h * weighed(table.b, f)
        new = step.value(y)
        wrong = step.value(h * weighed(table.error, f))
        error = self.norm(wrong, step.lanes.x, new)
        return Outcome(new, error, step.newest if table.reuses_last else None)

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def first_step(self, one: Run) -> Tensor:
        """A step size that one Euler step of a hundredth of x / f finds, float64 [B].

        Source: Hairer, Norsett & Wanner (1993), section II.4, "starting step size".
        """
        now, ends, settings = one.now, one.times, self.settings
        scale = now.x.detach().abs().mul_(settings.rtol).add_(settings.atol)

        def norm(step: Step, form: Form) -> Tensor:
            return root_mean_square(step.value(form).detach() / scale).to(now.t.device)

        step = Step(self.model, now, now.t)
        f = self.slope(step, step.x, now.t)
        size, speed = norm(step, step.x), norm(step, f)
        h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
        h = torch.minimum(h, (now.t - ends[1]).abs())
        step = Step(self.model, now, now.t + (h if ends[1] > ends[0] else -h))
        f = self.slope(step, step.x, step.t)
        bend = self.slope(step, step.x + step.h * f, step.t_next) - f
        one.count(torch.ones_like(now.retry))
        largest = torch.maximum(speed, norm(step, bend) / h)
        power = torch.exp(torch.log(0.01 / largest) * (1 / self.tableau.order))
        better = torch.where(largest <= 1e-15, (h * 1e-3).clamp_min(1e-6), power)
        better = torch.minimum(h * 100, better)
        # A NaN here is found, and reported, by the first step.
        return torch.where(better.isfinite(), better, h)


@solver(
    RungeKuttaSettings,
    order="2 to 5 (method)",
    noise="none",
    source="Dormand & Prince (1980), Tsitouras (2011), Bogacki & Shampine (1989); Hairer, Norsett "
    "& Wanner (1993), section II.4",
)
def rk_pf_ode(
    denoiser: Denoiser, x: Tensor, sigmas: Levels, settings: RungeKuttaSettings
) -> tuple[Tensor, AdaptiveInfo]:
    """Solve dx/dsigma = (x - D)/sigma to a tolerance, with a step size for each sample.

    Orders 2 (heun21), 3 (bosh32) and 5 (dopri54, tsit54), with local extrapolation. A try of heun21
    costs 2 evaluations, 1 after a rejection, and a run one more at its start. A try of bosh32 costs
    3, of dopri54 and tsit54 6, and a run two more at its start. With `first_step` the start costs
    one less. Steps, error norm (root mean square over a sample) and acceptance are per sample: with
    a denoiser that processes each sample independently, a sample's result does not depend on the
    others of the batch, to the bit.

    Tolerances hold for a step, and errors add up: at the defaults, on samples of 64 elements of
    Gaussian data of spread 0.05 to 5 and of mixtures, from sigma = 10, 80 and 1,000 down to 0.002,
    the relative error of the result (root mean square over a sample) was at most 3e-5 with the
    pairs of order 5 in log_sigma, and 2e-4 with the others or in sigma.

    Source: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I" (1993), section
    II.4, with the pairs of Dormand & Prince (1980), Tsitouras (2011), Bogacki & Shampine (1989).
    """
    check.function("denoiser", denoiser)
    SampleNoise(settings, x, wanted=False)  # checks the seed
    return _run(denoiser, x, read_levels(sigmas, settings), settings, "rk_pf_ode")


def solve(
    denoiser: Denoiser, x: Tensor, levels: tuple[float, float], *, name: str, **options: Any
) -> tuple[Tensor, AdaptiveInfo]:
    """`rk_pf_ode` for other parts of the library, from a checked x: upwards too, without autograd.

    `name` is for error texts and progress bars.
    """
    settings = checked(RungeKuttaSettings, options)
    with torch.no_grad():
        return _run(denoiser, x, Grid(levels, Recorder(None, levels)), settings, name)


def _run(
    denoiser: Denoiser, x: Tensor, grid: Grid, settings: RungeKuttaSettings, name: str
) -> tuple[Tensor, AdaptiveInfo]:
    table = TABLEAUX[settings.method]
    model = Model("denoiser", denoiser, x.dtype, look=settings.check_nan)
    steps = RungeKutta(table, model, settings, name, coordinates_of(denoiser))
    parts = settings.pcoeff, settings.icoeff, settings.safety
    control = PIControl(table.embedded_order + 1, *parts, min_factor=0.2, max_factor=10.0)
    return run(steps, control, x, grid, settings.first_step or steps.first_step)
