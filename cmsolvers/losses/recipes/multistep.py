"""Consistency to the start of each segment of the path, for samplers of a few steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.combination import Combination, of
from cmsolvers.losses.distributions_consistency import AnnealedPairs
from cmsolvers.losses.evaluation import Evaluation
from cmsolvers.losses.loss import loss
from cmsolvers.losses.pairs import ends_clean, measured
from cmsolvers.losses.perceptual import Between
from cmsolvers.losses.teacher_steps import TeacherStep, stepped
from cmsolvers.losses.weights import Norm, PairWeight, mean_square


@loss(
    identity="eulerian",
    source="Heek et al., 'Multistep Consistency Models' (2024), algorithm 1 and eq. 7",
    times=AnnealedPairs(),
    coordinates="flow",
    model="flow map",
    teacher="required",
    pair=True,
)
def mcd(
    at: Evaluation,
    *,
    segments: int | Sequence[float] = 4,
    solver: str | TeacherStep = "euler",
    distance: Norm | Between = mean_square,
    weight: PairWeight | None = None,
) -> Tensor:
    """Multistep consistency distillation: E w d(f_{t->e}(x), f^-_{s->e}(y)) / g, e the segment's.

    The path is cut into segments, and the map goes from t to the lower end e of its segment; y is
    one step of the teacher from x, to s or to e where that is nearer. Both sides are divided by the
    weight g of x_0 in the map, so that they are compared as data (as the paper does). Where s = e
    the target is y itself, and x_0 where both are 0. One segment is `cd`; as many as pairs of
    levels is the teacher. `flow_map_sample` with the ends of the segments samples.

    Args:
        segments: how many, of equal length in a path that ends; or their ends, descending levels of
            the model from the largest to 0.
        solver: of the teacher: "euler", "heun" or a `TeacherStep`.
        distance: a norm of the difference per sample, or a distance `Between` both.
        weight: w(t, s), float64 [B] each; None is 1.
    """
    ends = segment_ends(at, segments)
    low = ends[(torch.searchsorted(ends, at.t.contiguous()) - 1).clamp_min(0)]
    end = torch.maximum(at.s, low)
    clean = ends_clean(at)
    there = end <= low  # the map from y is the identity; its network is called at t
    gone = there if clean is False else there & (end == 0.0)
    (x,) = at.states(at.t)
    y = stepped(solver, at.teacher, x, torch.where(gone, at.t, end))
    gain = at.path.alpha(low) - at.path.alpha(at.t) * kept(at, low)
    made = at.student(x, low) / gain
    raise NotImplementedError


def kept(at: Evaluation, low: Tensor) -> Tensor:
    raise NotImplementedError


def segment_ends(at: Evaluation, segments: int | Sequence[float]) -> Tensor:
    raise NotImplementedError
