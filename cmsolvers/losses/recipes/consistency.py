"""Consistency in pairs: the same answer at two neighbouring points of one trajectory."""

from __future__ import annotations

from torch import Tensor

from cmsolvers.losses.evaluation import Evaluation
from cmsolvers.losses.identities import eulerian_pair
from cmsolvers.losses.level_distributions import LogNormalPairs
from cmsolvers.losses.loss import loss
from cmsolvers.losses.weights import Norm, PairWeight, inverse_gap, pseudo_huber
from cmsolvers.schedules import karras_sigmas


@loss(
    identity="eulerian",
    source="Song & Dhariwal, 'Improved Techniques for Training Consistency Models' (2023), "
    "section 3",
    times=LogNormalPairs(karras_sigmas(1281, append_zero=False)),
    coordinates="karras",
    model="consistency",
    pair=True,
)
def ict(
    at: Evaluation, *, distance: Norm | None = None, weight: PairWeight = inverse_gap
) -> Tensor:
    """Improved consistency training: no teacher, no average as target, pseudo-Huber, 1 / (t - s).

    Both states have the same noise. Train with few pairs of levels first and double their number on
    the way: `times=DoublingPairs(total)`.

    Args:
        distance: of the residual per sample; None is `pseudo_huber()`.
        weight: w(t, s).
    """
    x, y = at.states(at.t, at.s)
    measure = pseudo_huber() if distance is None else distance
    return measure(eulerian_pair(at.student(x), at.target(y))) * weight(at.t, at.s)
