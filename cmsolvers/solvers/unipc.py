"""UniPC: a predictor and a corrector of one family, with one evaluation per step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cmsolvers.engine.forms import Form, weighed
from cmsolvers.engine.options import Option, chosen, counted
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.solvers import exponential


def predictor(levels: Sequence[float], to: float, order: int, variant: str) -> list[float]:
    """UniP: weights of D at the last `order` levels, latest first; they sum to 1 - s'/s."""
    h, nodes = exponential.steps_back(levels, to, order)
    if len(nodes) != 2:
        return exponential.weights(h, nodes)
    past = 0.5 * _b(h, variant) / nodes[1]
    return [-math.expm1(-h) - past, past]


def corrector(levels: Sequence[float], to: float, order: int, variant: str) -> list[float]:
    """UniC: weights of D at `to` and then at the last `order` levels."""
    h, nodes = exponential.steps_back(levels, to, order)
    if len(nodes) > 1:
        return exponential.weights(h, [1.0, *nodes])
    new = 0.5 * _b(h, variant)
    return [new, -math.expm1(-h) - new]


def _b(h: float, variant: str) -> float:
    """B(h), which matters only where the one coefficient is set to 1/2 and not solved for.

    From where no data is left h is infinite, and B of "bh1" would be, too.
    """
    return h if variant == "bh1" and math.isfinite(h) else -math.expm1(-h)


@solver(
    order="2 to 4, order + 1 (small first steps; else at most 3)",
    nfe="n",
    source="Zhao et al., UniPC (2023), multistep UniP and UniC on the data prediction",
    options=[
        Option(
            "order",
            3,
            counted(1, 3),
            "p, 1 to 3. p = 3 has order 4 but for the first step's error, which is of order 3.",
        ),
        Option(
            "variant",
            "bh2",
            chosen("bh1", "bh2"),
            '"bh1", B(h) = h, or "bh2", B(h) = 1 - e^-h. It matters to UniP-2 and UniC-1, whose '
            "coefficient is 1/2 by definition; elsewhere B cancels when the system is solved.",
        ),
    ],
)
def unipc(step: Step, order: int, variant: str) -> Form:
    """UniPC-p, data prediction, multistep: order p + 1 with one evaluation per step.

    UniP predicts the next state from the last p outputs; D there, which the next step needs anyway,
    corrects it (UniC). The state that the callback and `trajectory` show is the predicted one; the
    corrected one exists only inside the next row. The order grows over the first steps, the
    last state is a prediction, and a last step to 0 gives D.

    Source: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
    Diffusion Models" (2023): multistep UniP-p and UniC-p on the data prediction.
    """
    d = [step.D(step.x, step.sigma)]
    if step.to == 0:
        return d[0]
    path = step.path
    ratios, after = [path.ratio(s) for s in step.levels[-order - 1 :]], path.ratio(step.to)
    past = range(1, min(order, step.index) + 1)
    d += [step.past(k) for k in past if k == 1 or math.isfinite(ratios[-1 - k])]
    corrected = step.x
    if step.index:
        # Both start from the same corrected state with the same weight, so they differ by D alone.
        before, now = ratios[:-1], ratios[-1]
        change = weighed(corrector(before, now, order, variant), d) - weighed(
            predictor(before, now, order, variant), d[1:]
        )
        corrected = corrected + path.alpha(step.sigma) * change
    kept = path.sigma(step.to) / path.sigma(step.sigma)
    if math.isinf(after):
        return kept * corrected + (step.toward(d[0], step.to) - kept * step.x)
    row = predictor(ratios, after, order, variant)
    return kept * corrected + path.alpha(step.to) * weighed(row, d)
