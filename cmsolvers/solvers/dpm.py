"""DPM-Solver of orders 2 and 3: exponential Runge-Kutta steps on the slope (x - D) / sigma."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import eta as eta_option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Span, Step
from cmsolvers.solvers import exponential
from cmsolvers.solvers.ancestral import ETA, ancestral
from cmsolvers.solvers.euler import euler_step


def dpm_2_step(step: Step, to: float) -> Form:
    """x + (s' - s) d(mid), mid = sqrt(s s') reached by Euler; a step to 0 is Euler's."""
    if to == 0:
        return euler_step(step, to)
    middle = math.sqrt(step.sigma) * math.sqrt(to)
    y = euler_step(step, middle)
    return step.x + (to - step.sigma) * step.slope(y, middle)


def dpm_3_step(step: Step, to: float) -> Form:
    """DPM-Solver-3 with r_1 = 1/3 and r_2 = 2/3, the middle points at the thirds of ln sigma.

    The second takes the line through the first two slopes, the end the line through the first and
    the last, each under the exponential integral. A step to 0 gives D.
    """
    if to == 0:
        return euler_step(step, to)
    s, h = step.sigma, exponential.log_ratio(step.sigma, to)
    first, second = s * (to / s) ** (1 / 3), s * (to / s) ** (2 / 3)
    d = step.slope(step.x, s)
    d_first = step.slope(step.x + (first - s) * d, first)
    a, b = (second * w for w in exponential.weights(-2 / 3 * h, (0.0, 1 / 2)))
    d_second = step.slope(step.x + a * d + b * d_first, second)
    a, b = (to * w for w in exponential.weights(-h, (0.0, 2 / 3)))
    return step.x + a * d + b * d_second


@solver(
    order="2",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="churn",
    source="Lu et al., DPM-Solver (2022), algorithm 1; churn: Karras et al. (2022), algorithm 2",
)
def dpm_2(step: Step) -> Form:
    """DPM-Solver-2: the midpoint rule at the geometric mean of both levels, order 2.

    Two evaluations per step, one in a last step to 0, which gives D.

    Source: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
    Around 10 Steps" (2022), algorithm 1 with r = 1/2; churn: Karras et al. (2022), algorithm 2.
    """
    return dpm_2_step(step, step.to)


@solver(
    order="2 (weak); 2 for eta = 0",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="fresh",
    source="Lu et al., DPM-Solver (2022), algorithm 1, with ancestral noise",
    options=[ETA],
)
def dpm_2_ancestral(step: Step, eta: float) -> Form:
    """DPM-Solver-2 with ancestral noise: weak order 2, two evaluations per step, one to 0.

    A step is DPM-Solver-2's to `down`, then noise of size `up`, both as in `euler_ancestral`. An
    eta so large that down = 0 makes a step one of one evaluation.

    Source: Lu et al., "DPM-Solver" (2022), algorithm 1 with r = 1/2; noise as in
    `euler_ancestral`.
    """
    return ancestral(step, dpm_2_step, eta)


_BLOCKS: dict[int, Callable[[Step, float], Form]] = {1: euler_step, 2: dpm_2_step, 3: dpm_3_step}


def block_orders(n: int, to_zero: bool) -> tuple[int, ...]:
    """Orders that sum to n: 3, ..., 3, 2, 1 where 3 divides n, else 3, ..., 3 and the rest.

    ln sigma has no middle on the way to 0, so a block that ends there is of order 1.
    """
    full, rest = divmod(n, 3)
    if rest == 0:
        return (3,) * (full - 1) + (2, 1)
    return (3,) * full + ((1, 1) if rest == 2 and to_zero else (rest,))


def _blocks(sigmas: Sequence[float], eta: float) -> list[Span]:
    """One step for each block; its kind is its order."""
    orders = block_orders(len(sigmas) - 1, sigmas[-1] == 0)
    ends = pairwise(sigmas[i] for i in accumulate(orders, initial=0))
    return [(s, s, to, order) for (s, to), order in zip(ends, orders, strict=True)]


@solver(
    order="3 for n = 3 k + 2, else 2",
    nfe="n",
    noise="fresh",
    source="Lu et al., DPM-Solver (2022), algorithms 1, 2 and appendix D (DPM-Solver-fast)",
    options=[
        eta_option(
            0.0, "ancestral noise after each block, as in `euler_ancestral`; in [0, 1].", share=True
        )
    ],
    spans=_blocks,
)
def dpm_fast(step: Step, eta: float) -> Form:
    """DPM-Solver-fast: steps of DPM-Solver-3, with the rest of the evaluations spent on 2 and 1.

    n = len(sigmas) - 1 evaluations exactly. A block of order k takes k intervals of `sigmas` at
    once and places its own middle points evenly in ln sigma. Where 3 divides n the last two blocks
    are of orders 2 and 1, else the last one is of order n mod 3; on the way to 0 an order-2 block
    becomes two of order 1, of which the last gives D. So the order is 3 where n mod 3 = 2 and the
    last level is positive, and 2 otherwise. One block is one step: for `callback`, for the draws of
    noise, and for `trajectory`, which holds the levels where blocks end.

    Source: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
    Around 10 Steps" (2022), algorithms 1 and 2, and appendix D for the budget of evaluations.
    """
    return ancestral(step, _BLOCKS[step.kind], eta)
