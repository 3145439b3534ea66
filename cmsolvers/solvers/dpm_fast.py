"""DPM-Solver-fast: blocks of orders 3, 2 and 1 that spend a given number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.solvers import exponential
from cmsolvers.solvers.ancestral import Ancestral
from cmsolvers.solvers.dpm import dpm_2_stages, on_denoised
from cmsolvers.solvers.euler import euler_stages

if TYPE_CHECKING:
    from typing_extensions import Unpack


def dpm_3_stages(levels: Sequence[float], to: float) -> tuple[Stage, ...]:
    """DPM-Solver-3 with r_1 = 1/3 and r_2 = 2/3.

    The middle points lie at the thirds of ln sigma. The second takes the line through the first two
    slopes, the end the line through the first and the last, each under the exponential integral.
    """
    s = levels[-1]
    h = exponential.steps_back((s,), to, 1)[0]
    first, second = s * (to / s) ** (1 / 3), s * (to / s) ** (2 / 3)
    middle = [second * w for w in exponential.weights(-2 / 3 * h, (0.0, 1 / 2))]
    start, last = (to * w for w in exponential.weights(-h, (0.0, 2 / 3)))
    return on_denoised((s, first, second, to), ((first - s,), middle, (start, 0.0, last)))


_BLOCKS = {1: euler_stages, 2: dpm_2_stages, 3: dpm_3_stages}


def block_orders(n: int, to_zero: bool) -> tuple[int, ...]:
    """Orders that sum to n: 3, ..., 3, 2, 1 where 3 divides n, else 3, ..., 3 and the rest.

    ln sigma has no middle on the way to 0, so a block that ends there is of order 1.
    """
    full, rest = divmod(n, 3)
    if rest == 0:
        return (3,) * (full - 1) + (2, 1)
    return (3,) * full + ((1, 1) if rest == 2 and to_zero else (rest,))


@dataclass(frozen=True, slots=True)
class FastStages:
    """Block k is a step of DPM-Solver of order orders[k], with ancestral noise after it."""

    orders: tuple[int, ...]
    eta: float

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """The stages of the next block; one level a block so far."""
        return Ancestral(self.eta, _BLOCKS[self.orders[len(levels) - 1]])(levels, to)


@described(
    order="3; 2 where a block is of order 1",
    nfe="n",
    noise="fresh",
    source="Lu et al., DPM-Solver (2022), algorithms 1, 2 and appendix D (DPM-Solver-fast)",
)
@sampler
def dpm_fast(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """DPM-Solver-fast: steps of DPM-Solver-3, with the rest of the evaluations spent on 2 and 1.

    n = len(sigmas) - 1 evaluations exactly. A block of order k takes k intervals of `sigmas` at
    once and places its own middle points evenly in ln sigma. Where 3 divides n the last two blocks
    are of orders 2 and 1, else the last one is of order n mod 3; on the way to 0 an order-2 block
    becomes two of order 1, of which the last gives D. So the order is 3 where n mod 3 = 2 and the
    last level is positive, and 2 otherwise. One block is one step: for `callback`, for the draws of
    noise, and for `trajectory`, which holds the levels where blocks end.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0.
        eta: ancestral noise after each block, as in `euler_ancestral`; in [0, 1].
        s_noise: factor on the noise.
        options: see `euler_pf_ode`.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: see `euler_pf_ode`.
        ValueError: eta outside [0, 1]; see `euler_pf_ode`.

    Source: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
    Around 10 Steps" (2022), algorithms 1 and 2, and appendix D for the budget of evaluations.
    """
    levels = check.sigmas("sigmas", sigmas)
    orders = block_orders(len(levels) - 1, levels[-1] == 0)
    plan = make_plan(
        "dpm_fast",
        tuple(levels[i] for i in accumulate(orders, initial=0)),
        FastStages(orders, check.within("eta", eta, 0.0, 1.0)),
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)
