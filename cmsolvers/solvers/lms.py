"""Linear multistep methods: Adams-Bashforth in sigma, for steps of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import Option, counted
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.solvers.exponential import lagrange


def from_slopes(step: Step, past: Sequence[float]) -> Form:
    """x + w d + sum_j past[j] d_j, d_j the slope j + 1 steps before.

    A constant slope must be integrated exactly, so w is what `past` leaves of s' - s: past weights
    of levels that nearly coincide are large and would not sum to it, each rounded by itself.
    """
    own = math.fsum((step.to, -step.sigma, *(-w for w in past)))
    total = step.x + own * step.slope(step.x, step.sigma)
    for k, weight in enumerate(past, start=1):
        total = total + weight * step.past_slope(k)
    return total


@solver(
    order="1 to 4 (small first steps; else at most 2)",
    nfe="n",
    source="Hairer, Norsett & Wanner (1993), section III.5 (Adams-Bashforth, variable steps)",
    options=[Option("order", 4, counted(1, 4), "1, 2, 3 or 4.")],
)
def lms(step: Step, order: int) -> Form:
    """Linear multistep (Adams-Bashforth) on dx/dsigma = (x - D)/sigma: one evaluation per step.

    The polynomial through the last `order` slopes is integrated over the step exactly, for levels
    of any spacing; order = 1 is Euler's method. The first steps have fewer slopes and so a lower
    order, and the error of the very first, of order 2 in its size, stays. It is small where noise
    hides the data, as it does at the start of sampling: slopes hardly change there. A last step to
    0 gives D: published code integrates the polynomial to 0, which leaves noise in the result. A
    long step after steps that are shorter by many orders of magnitude multiplies their rounding
    errors.

    Source: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I" (1993), section
    III.5.
    """
    if step.to == 0:
        return step.D(step.x, step.sigma)
    h = step.to - step.sigma
    nodes = [(level - step.sigma) / h for level in reversed(step.levels[-order:])]
    past = [
        h * math.fsum(c / (k + 1) for k, c in enumerate(polynomial))
        for polynomial in lagrange(nodes)[1:]
    ]
    return from_slopes(step, past)
