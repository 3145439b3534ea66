"""UniPC: a predictor and a corrector of one family, with one evaluation a step."""

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

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class UniPCStages:
    """The predictor's row over the predicted state: the corrected one is never stored.

    Predictor and corrector of a step start from the same corrected state with the same weight, so
    they differ by outputs D alone: corrected = predicted + sum_j (c_j - p_j) D_j. That goes into
    the next predictor's row, x' = (s'/s) corrected + sum_j p'_j D_j.
    """

    order: int
    variant: str

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """The row over x and D now and before, or D itself for a step to 0."""
        if to == 0:
            return (Stage(0.0, 0.0, (1.0,)),)
        shrink = to / levels[-1]
        row = self.predictor(levels, to)
        if len(levels) > 1:
            before = levels[:-1]
            predicted = [0.0, *self.predictor(before, levels[-1])]
            corrected = self.corrector(before, levels[-1])
            row += [0.0] * (len(corrected) - len(row))
            for j, (c, p) in enumerate(zip(corrected, predicted, strict=True)):
                row[j] += shrink * (c - p)
        return (Stage(to, shrink, (row[0],), tuple(row[1:])),)

    def predictor(self, levels: Sequence[float], to: float) -> list[float]:
        """UniP: weights of D at the last `order` levels, latest first; they sum to 1 - s'/s."""
        h, nodes = exponential.steps_back(levels, to, self.order)
        if len(nodes) != 2:
            return exponential.weights(h, nodes)
        past = 0.5 * self._b(h) / nodes[1]
        return [-math.expm1(-h) - past, past]

    def corrector(self, levels: Sequence[float], to: float) -> list[float]:
        """UniC: weights of D at `to` and then at the last `order` levels."""
        h, nodes = exponential.steps_back(levels, to, self.order)
        if len(nodes) > 1:
            return exponential.weights(h, [1.0, *nodes])
        new = 0.5 * self._b(h)
        return [new, -math.expm1(-h) - new]

    def _b(self, h: float) -> float:
        """B(h), which matters only where the one coefficient is set to 1/2 and not solved for."""
        return h if self.variant == "bh1" else -math.expm1(-h)


@described(
    order="2 to 4 (order + 1)",
    nfe="n",
    noise="none",
    source="Zhao et al., UniPC (2023), multistep UniP and UniC on the data prediction",
)
@sampler
def unipc(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    order: int = 3,
    variant: str = "bh2",
    **options: Unpack[Options],
) -> Any:
    """UniPC-p, data prediction, multistep: order p + 1 with one evaluation a step.

    UniP predicts the next state from the last p outputs; D there, which the next step needs anyway,
    corrects it (UniC). The state that the callback and `trajectory` show is the predicted one; the
    corrected one exists only inside the next row. The order grows over the first steps, the
    last state is a prediction, and a last step to 0 gives D.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0.
        order: p, 1 to 3. p = 3 has order 4 but for the first step's error, which is of order 3.
        variant: "bh1", B(h) = h, or "bh2", B(h) = 1 - e^-h. It matters to UniP-2 and UniC-1, whose
            coefficient is 1/2 by definition; elsewhere B cancels when the system is solved.
        options: see `euler_pf_ode`.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: see `euler_pf_ode`.
        ValueError: order outside 1 to 3, another variant; see `euler_pf_ode`.

    Source: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
    Diffusion Models" (2023): multistep UniP-p and UniC-p on the data prediction.
    """
    formula = UniPCStages(
        check.count("order", order, most=3), check.choice("variant", variant, ("bh1", "bh2"))
    )
    plan = make_plan("unipc", check.sigmas("sigmas", sigmas), formula, keep=formula.order)
    return run(plan, denoiser, x, **options)
