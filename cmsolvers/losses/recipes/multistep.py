"""Consistency to the start of each segment of the path, for samplers of a few steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.combination import of
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.evaluation.terms import Weighted
from cmsolvers.losses.formulas.pairs import measured
from cmsolvers.losses.formulas.perceptual import Between
from cmsolvers.losses.formulas.teacher_steps import TeacherStep, stepped
from cmsolvers.losses.formulas.weights import Norm, PairWeight, mean_square
from cmsolvers.losses.times.consistency_times import AnnealedPairs


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
) -> Weighted:
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
    low = segment_end(at, segments)
    end = torch.maximum(at.s, low)
    there = end <= low  # nothing is left to map: the target's network is called at t
    data = there & (end == 0.0)
    (x,) = at.states(at.t)
    y = stepped(solver, at.teacher, x, torch.where(data, at.t, end))
    gain = at.path.alpha(low) * (1.0 - at.path.ratio(low) / at.path.ratio(at.t))
    made = at.student(x, low) / gain
    mapped = at.target(State(y.x, torch.where(there, at.t, end)), low).detach()
    aim = mapped * (~there).double() + of(y.x) * (there & ~data).double()
    aim += of(at.x0.detach()) * data.double()
    return measured(at, made, aim / gain, distance, weight)


def segment_end(at: Evaluation, segments: int | Sequence[float]) -> Tensor:
    """The lower end of the segment that each t lies in, float64 [B].

    Raises:
        TypeError: neither an int nor levels.
        ValueError: a path without an end is to be cut evenly, levels out of order.
    """
    top, device = at.path.max_level, at.t.device
    if isinstance(segments, int):
        count = check.count("segments", segments)
        if math.isinf(top):
            raise ValueError(
                f"segments must be levels, descending to 0, in {at.path}, which have no largest "
                f"one; got {count}"
            )
        ends = torch.arange(count, dtype=torch.float64, device=device) / count * top
    else:
        levels = check.sigmas("segments", segments)
        if levels[-1] != 0.0:
            raise ValueError(f"segments must end in 0; got {levels[-1]:g} at the end")
        # One number at a time: no copy from the host that the device would be waited for.
        ends = torch.stack(
            [at.t.new_full((), level, dtype=torch.float64) for level in reversed(levels[1:])]
        )
    return ends[(torch.searchsorted(ends, at.t.contiguous()) - 1).clamp_min(0)]
