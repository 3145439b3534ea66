"""Linear multistep methods: Adams-Bashforth in sigma, for steps of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan, slope_row
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.solvers.exponential import lagrange

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class AdamsStages:
    """X' = x + int_s^s' p(sigma) dsigma, p the polynomial through the last `order` slopes."""

    order: int

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """The row on D and past slopes; as many of them as there are at the start."""
        s = levels[-1]
        h = to - s
        nodes = [(level - s) / h for level in reversed(levels[-self.order :])]
        past = [
            h * math.fsum(c / (k + 1) for k, c in enumerate(polynomial))
            for polynomial in lagrange(nodes)[1:]
        ]
        return slope_row(s, to, past)


@described(
    order="1 to 4 after the first steps",
    nfe="n",
    noise="none",
    source="Hairer, Norsett & Wanner (1993), section III.5 (Adams-Bashforth, variable steps)",
)
@sampler
def lms(
    denoiser: Any, x: Tensor, sigmas: Any, *, order: int = 4, **options: Unpack[Options]
) -> Any:
    """Linear multistep (Adams-Bashforth) on dx/dsigma = (x - D)/sigma: one evaluation a step.

    The polynomial through the last `order` slopes is integrated over the step exactly, for levels
    of any spacing; order = 1 is Euler's method. The first steps have fewer slopes and so a lower
    order, and the error of the very first, of order 2 in its size, stays. It is small where noise
    hides the data, as it does at the start of sampling: slopes hardly change there. The last step
    to 0 is no special one: the polynomial is integrated to 0. A long step after steps that are
    shorter by many orders of magnitude multiplies their rounding errors.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0.
        order: 1, 2, 3 or 4.
        options: see `euler_pf_ode`; no noise is ever drawn.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: an order that is no int; see `euler_pf_ode`.
        ValueError: an order outside 1 ... 4; see `euler_pf_ode`.

    Source: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I" (1993), section
    III.5.
    """
    order = check.count("order", order, most=4)
    plan = make_plan(
        "lms",
        check.sigmas("sigmas", sigmas),
        AdamsStages(order),
        keep=order - 1,
        keep_slopes=True,
    )
    return run(plan, denoiser, x, **options)
