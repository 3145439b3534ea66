"""The SDE solvers of DPM-Solver++: singlestep, and multistep of two and three evaluations.

They solve dx = (1 + eta) (x - D) dsigma / sigma + noise, whose marginals are those of the
probability-flow ODE for every eta: 0 is that ODE, 1 the reverse SDE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.solvers import exponential
from cmsolvers.solvers.ancestral import down_up

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class SinglestepStages:
    """Two stages (down/s) x + (1 - down/s) D + up z, to the point r of the step and to its end.

    up = min(s', eta s' sqrt(1 - s'^2/s^2)) and down = sqrt(s'^2 - up^2); for eta = 1 that is the
    exact noise of the reverse SDE. The second takes (1 - 1/(2r)) D + 1/(2r) D_mid for D.
    """

    eta: float
    r: float

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """Both rows, or D itself for a step to 0."""
        if to == 0:
            return (Stage(0.0, 0.0, (1.0,)),)
        s, share = levels[-1], 0.5 / self.r
        middle = to if self.r == 1.0 else s * math.exp(self.r * math.log(to / s))
        down, up = down_up(s, middle, self.eta)
        first = Stage(middle, down / s, ((s - down) / s,), w_z=up)
        down, up = down_up(s, to, self.eta)
        gain = (s - down) / s
        return first, Stage(to, down / s, ((1.0 - share) * gain, share * gain), w_z=up)


@dataclass(frozen=True, slots=True)
class MultistepStages:
    """X' = (s'/s) e^{-eta h} x + sum of weights D + s' sqrt(1 - e^{-2 eta h}) z.

    The weights integrate the polynomial through the last `order` D exactly (fewer at the start);
    `midpoint` replaces that of order 2 by (1 - e^{-(1 + eta) h}) / (2 r) (D - D_last).
    """

    eta: float
    order: int
    midpoint: bool = False

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """The row, or D itself for a step to 0."""
        if to == 0:
            return (Stage(0.0, 0.0, (1.0,)),)
        h, nodes = exponential.steps_back(levels, to, self.order)
        rate = (1.0 + self.eta) * h
        if self.midpoint and len(nodes) == 2:
            gain = -math.expm1(-rate)
            past = 0.5 * gain / nodes[1]
            row = [gain - past, past]
        else:
            row = exponential.weights(rate, nodes)
        noise = to * math.sqrt(-math.expm1(-2.0 * self.eta * h))
        return (Stage(to, math.exp(-rate), (row[0],), tuple(row[1:]), noise),)


_LU = "Lu et al., DPM-Solver++ (2022)"


@described(
    order="2 for eta = 0; else 1 strong, 2 weak",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="Brownian",
    source=f"{_LU}, algorithm 1 (2S), on the diffusion SDE",
)
@sampler
def dpmpp_sde(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    **options: Unpack[Options],
) -> Any:
    """DPM-Solver++ (SDE): two evaluations a step, at its start and at a point within.

    A step asks for the noise of (sigma, sigma_mid) and (sigma, sigma_next), two nested increments
    of one Brownian path. The default is a `noise.BrownianPath` in ln sigma, keyed by the seed: a
    finer schedule between the same ends follows the same path (up to about 8000 steps), so that the
    samples of a seed converge as steps are added (strong order 1). A `noise_sampler` must be a
    path, too; two unrelated normals would lose the weak order 2 and the convergence.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0; a step there gives D.
        eta: 0 is the ODE, 1 the reverse SDE; the noise of a step from s to s' is
            min(1, eta sqrt(1 - s'^2/s^2)) s'.
        s_noise: factor on the noise.
        r: where in the step the second evaluation is, in ln sigma, in (0, 1].
        options: see `euler_pf_ode`; the noise of a path uses stream 2.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: see `euler_pf_ode`.
        ValueError: eta negative, r outside (0, 1]; see `euler_pf_ode`.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), algorithm 1 (2S), with the steps of SDE-DPM-Solver++1.
    """
    formula = SinglestepStages(check.non_negative("eta", eta), check.positive("r", r))
    check.within("r", r, 0.0, 1.0)
    plan = make_plan(
        "dpmpp_sde",
        check.sigmas("sigmas", sigmas),
        formula,
        s_noise=check.non_negative("s_noise", s_noise),
        brownian=True,
    )
    return run(plan, denoiser, x, **options)


@described(
    order="2 for eta = 0; else 1 strong, 2 weak",
    nfe="n",
    noise="Brownian",
    source=f"{_LU}, SDE-DPM-Solver++(2M)",
)
@sampler
def dpmpp_2m_sde(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    **options: Unpack[Options],
) -> Any:
    """SDE-DPM-Solver++(2M): one evaluation a step, from D and the D before; eta = 0 is order 2.

    The noise of a step from s to s' is s' sqrt(1 - e^{-2 eta h}), h = ln(s/s'), and follows one
    Brownian path as in `dpmpp_sde`. The first step takes D alone, a last step to 0 gives D.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0.
        eta: 0 is the ODE, 1 the reverse SDE.
        s_noise: factor on the noise.
        solver_type: "midpoint" (the paper's 2M) or "heun" (the line through both D, integrated
            exactly).
        options: see `euler_pf_ode` and `dpmpp_sde`.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: see `euler_pf_ode`.
        ValueError: eta negative, another solver_type; see `euler_pf_ode`.

    Source: Lu et al., "DPM-Solver++" (2022), SDE-DPM-Solver++(2M).
    """
    kind = check.choice("solver_type", solver_type, ("midpoint", "heun"))
    plan = make_plan(
        "dpmpp_2m_sde",
        check.sigmas("sigmas", sigmas),
        MultistepStages(check.non_negative("eta", eta), 2, kind == "midpoint"),
        s_noise=check.non_negative("s_noise", s_noise),
        brownian=True,
        keep=1,
    )
    return run(plan, denoiser, x, **options)


@described(
    order="3 for eta = 0; else 1 strong, 2 weak",
    nfe="n",
    noise="Brownian",
    source=f"{_LU}, its SDE with the parabola through three D integrated exactly",
)
@sampler
def dpmpp_3m_sde(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """The SDE solver of DPM-Solver++ with three evaluations: one new a step; eta = 0 is order 3.

    Noise, arguments, result and errors are those of `dpmpp_2m_sde`. The first two steps are of
    orders 1 and 2. Some published code weighs the second difference of D by half of its exact
    weight, which leaves order 2; here it has all of it.

    Source: Lu et al., "DPM-Solver++" (2022), the exact solution of its SDE; Hochbruck &
    Ostermann, "Exponential Integrators" (2010), section 2.5 (exponential Adams methods).
    """
    plan = make_plan(
        "dpmpp_3m_sde",
        check.sigmas("sigmas", sigmas),
        MultistepStages(check.non_negative("eta", eta), 3),
        s_noise=check.non_negative("s_noise", s_noise),
        brownian=True,
        keep=2,
    )
    return run(plan, denoiser, x, **options)
