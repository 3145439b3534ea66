"""Consistency functions tuned from what was trained before: a diffusion model, a full range."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.mistakes.glances import can_be_read
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.terms import Weighted
from cmsolvers.losses.formulas.pairs import (
    aim_at,
    consistency_pair,
    ends_clean,
    measured,
    or_clean,
    pair_states,
    student_at,
)
from cmsolvers.losses.formulas.perceptual import Between
from cmsolvers.losses.formulas.teacher_steps import TeacherStep
from cmsolvers.losses.formulas.weights import Norm, PairWeight, inverse_gap, norm
from cmsolvers.losses.times.consistency_times import ECTPairs
from cmsolvers.losses.times.truncated_times import ABOVE, TruncatedPairs


@loss(
    identity="eulerian",
    source="Geng et al., 'Consistency Models Made Easy' (2024), section 3",
    times=ECTPairs(),
    coordinates="karras",
    model="consistency",
    teacher="optional",
    pair=True,
)
def ect(
    at: Evaluation,
    *,
    distance: Norm | Between = norm,
    weight: PairWeight | None = inverse_gap,
    solver: str | TeacherStep = "euler",
) -> Weighted:
    """Easy consistency tuning: E |f(x, t) - f^-(y, r)| / (t - r), the norm not squared.

    Begin with the weights of a diffusion model: where r = 0 the target is the clean sample, and
    stages (`times=ECTPairs(q=2.0, stage_steps=...)`) bring r up to t. With a teacher y is its step
    from x, without one both states have the same noise.

    Args:
        distance: a norm of f - f^- per sample, or a distance `Between` both; `pseudo_huber(c)` has
            the constant of other versions (1e-8, 0.06).
        weight: w(t, r), float64 [B] each; None is 1.
        solver: of the teacher: "euler", "heun" or a `TeacherStep`.
    """
    made, aim = consistency_pair(at, solver if at.has_teacher else None)
    return measured(at, made, aim, distance, weight)


@loss(
    identity="eulerian",
    source="Lee et al., 'Truncated Consistency Models' (2025), section 3.2, algorithm 1",
    times=TruncatedPairs(),
    coordinates="karras",
    model="consistency",
    teacher="required",
    pair=True,
    any_mode=True,
)
def tcm(
    at: Evaluation,
    *,
    start: float = 1.0,
    boundary_weight: float = 0.1,
    distance: Norm | Between = norm,
    weight: PairWeight | None = inverse_gap,
) -> Tensor:
    """Truncated consistency training: t >= t' alone, targets below t' from the first stage's model.

    The teacher is that model, a consistency function of the whole range, in training mode where the
    model is (dropout then falls alike). A share of the batch stands at t' itself, so that its
    targets hold the function there; the loss is the mean over the other samples plus
    `boundary_weight` times the mean over these. `per_sample` is such that its mean is this sum.

    Args:
        start: t', that of `times`, in the model's levels; a t below it is an error (on a CPU).
        boundary_weight: of the samples at t', not negative.
        distance: a norm of f - f^- per sample, or a distance `Between` both.
        weight: w(t, r), float64 [B] each; None is 1.
    """
    least = check.positive("start", start)
    _require_above(at, least)
    scale = check.non_negative("boundary_weight", boundary_weight)
    clean = ends_clean(at)
    x, y = pair_states(at, clean, None)
    made = student_at(at, x)
    kept = (at.s >= least).double()
    own, first = aim_at(at, at.target, y, False), aim_at(at, at.teacher, y, False)
    aim = or_clean(at, own * kept + first * (1.0 - kept), clean)
    edge = at.t <= least + 2.0 * ABOVE
    count, batch = edge.sum().double(), len(edge)
    at.diagnostics["boundary_samples"] = count
    others = batch / (batch - count).clamp_min(1.0)
    shares = torch.where(edge, scale * batch / count.clamp_min(1.0), others)
    return measured(at, made, aim, distance, weight).tensor() * shares


def _require_above(at: Evaluation, start: float) -> None:
    """ValueError where a sample stands below the start of training."""
    if at.t.device.type != "cpu" or not can_be_read(at.t) or len(at.t) == 0:
        return
    lowest = float(at.t.min())
    if lowest < start * (1.0 - 1e-9):
        raise ValueError(
            f"start must be that of times, such as TruncatedPairs(start=...), or below all levels; "
            f"got {start:g} for levels from {lowest:g} on"
        )
