"""The SDE solvers of DPM-Solver++: singlestep, and multistep of two and three evaluations.

They solve dx = (1 + eta) (x - D) dsigma / sigma + noise, whose marginals are those of the
probability-flow ODE for every eta: 0 is that ODE, 1 the reverse SDE.
"""

from __future__ import annotations

import math

from cmsolvers import checks as check
from cmsolvers.engine.forms import Form, weighed
from cmsolvers.engine.options import Option, chosen
from cmsolvers.engine.options import eta as eta_option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.solvers import exponential
from cmsolvers.solvers.ancestral import down_up, lift

_LU = "Lu et al., DPM-Solver++ (2022)"
_ETA = eta_option(1.0, "0 is the ODE, 1 the reverse SDE; not negative.")


def _within_step(name: str, value: object) -> float:
    return check.within(name, check.positive(name, value), 0.0, 1.0)


@solver(
    order="2 for eta = 0; else 1 strong, 2 weak",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="Brownian",
    source=f"{_LU}, algorithm 1 (2S), on the diffusion SDE",
    options=[
        eta_option(
            1.0,
            "0 is the ODE, 1 the reverse SDE; the noise of a step from s to s' is "
            "min(1, eta sqrt(1 - s'^2/s^2)) s'. Between 0 and 1 that is not the eta of "
            "`dpmpp_2m_sde`, whose drift has the factor 1 + eta.",
        ),
        Option(
            "r",
            0.5,
            _within_step,
            "where in the step the second evaluation is, in ln sigma, in (0, 1].",
        ),
    ],
)
def dpmpp_sde(step: Step, eta: float, r: float) -> Form:
    """DPM-Solver++ (SDE): two evaluations per step, at its start and at a point within.

    A step asks for the noise of (sigma, sigma_mid) and (sigma, sigma_next), two nested increments
    of one Brownian path. The default is a `noise.BrownianPath` in ln sigma, keyed by the seed: a
    finer schedule between the same ends follows the same path (up to about 8000 steps), so that the
    samples of a seed converge as steps are added (strong order 1). A `noise_sampler` must be a
    path, too; two unrelated normals would lose the weak order 2 and the convergence. A last step to
    0 gives D.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), algorithm 1 (2S), with the steps of SDE-DPM-Solver++1.
    """
    to, s = step.to, step.path.ratio(step.sigma)
    d = step.D(step.x, step.sigma)
    if to == 0:
        return d
    if math.isfinite(s):
        within = s * math.exp(r * math.log(step.path.ratio(to) / s))
        middle = to if r == 1.0 else step.path.level(within)
        down, up = down_up(step, middle, eta)
        y = lift(step, step.toward(d, down), down, middle, up, step.z(middle))
        d = d + 0.5 / r * (step.D(y, middle) - d)
    down, up = down_up(step, to, eta)
    return lift(step, step.toward(d, down), down, to, up, step.z())


def multistep(step: Step, eta: float, order: int, *, midpoint: bool = False) -> Form:
    """(s'/s) e^{-eta h} x + alpha' sum of weights D + s' sqrt(1 - e^{-2 eta h}) z.

    s is the spread of the noise, h = ln(r / r') with r = s / alpha. The weights integrate the
    polynomial through the last `order` D exactly (fewer at the start); `midpoint` replaces that of
    order 2 by (1 - e^{-(1 + eta) h}) / (2 r) (D - D_last). A step to 0 gives D.
    """
    d = [step.D(step.x, step.sigma)]
    if step.to == 0:
        return d[0]
    path = step.path
    h, nodes = exponential.ratios_back(step, step.to, order)
    d += [step.past(k) for k in range(1, len(nodes))]
    rate = (1.0 + eta) * h
    if midpoint and len(nodes) == 2:
        gain = -math.expm1(-rate)
        past = 0.5 * gain / nodes[1]
        row = [gain - past, past]
    else:
        row = exponential.weights(rate, nodes)
    fade = eta * h if eta else 0.0  # h may be infinite
    after = path.sigma(step.to)
    noise = after * math.sqrt(-math.expm1(-2.0 * fade))
    kept = after / path.sigma(step.sigma) * math.exp(-fade)
    return kept * step.x + path.alpha(step.to) * weighed(row, d) + noise * step.z()


@solver(
    order="2 for eta = 0; else 1 strong, 2 weak",
    nfe="n",
    noise="Brownian",
    source=f"{_LU}, SDE-DPM-Solver++(2M)",
    options=[
        _ETA,
        Option(
            "solver_type",
            "midpoint",
            chosen("midpoint", "heun"),
            '"midpoint" (the paper\'s 2M) or "heun" (the line through both D, integrated exactly).',
        ),
    ],
)
def dpmpp_2m_sde(step: Step, eta: float, solver_type: str) -> Form:
    """SDE-DPM-Solver++(2M): one evaluation per step, from D and the D before; order 2 for eta = 0.

    The noise of a step from s to s' is s' sqrt(1 - e^{-2 eta h}), h = ln(s/s'), and follows one
    Brownian path as in `dpmpp_sde`. The first step takes D alone, a last step to 0 gives D.

    Source: Lu et al., "DPM-Solver++" (2022), SDE-DPM-Solver++(2M).
    """
    return multistep(step, eta, 2, midpoint=solver_type == "midpoint")


@solver(
    order="3 for eta = 0 (small first steps; else 2); else 1 strong, 2 weak",
    nfe="n",
    noise="Brownian",
    source=f"{_LU}, its SDE with the parabola through three D integrated exactly",
    options=[_ETA],
)
def dpmpp_3m_sde(step: Step, eta: float) -> Form:
    """The SDE solver of DPM-Solver++ with three D, one new per step; order 3 for eta = 0.

    Noise is that of `dpmpp_2m_sde`. The first two steps are of orders 1 and 2, and a last step to 0
    gives D. Some published code weighs the second difference of D by half of its exact weight,
    which leaves order 2; here it has all of it.

    Source: Lu et al., "DPM-Solver++" (2022), the exact solution of its SDE; Hochbruck &
    Ostermann, "Exponential Integrators" (2010), section 2.5 (exponential Adams methods).
    """
    return multistep(step, eta, 3)
