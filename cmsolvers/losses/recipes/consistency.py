"""Consistency in pairs: the same answer at two neighbouring points of one trajectory."""

from __future__ import annotations

from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.terms import Weighted
from cmsolvers.losses.formulas.pairs import consistency_pair, measured
from cmsolvers.losses.formulas.perceptual import Between
from cmsolvers.losses.formulas.teacher_steps import TeacherStep
from cmsolvers.losses.formulas.weights import (
    Norm,
    PairWeight,
    inverse_gap,
    mean_square,
    pseudo_huber,
)
from cmsolvers.losses.times.basic_times import UniformPairs
from cmsolvers.losses.times.consistency_times import DoublingPairs, SquareRootPairs
from cmsolvers.schedules import karras_sigmas


@loss(
    identity="eulerian",
    source="Song et al., 'Consistency Models' (2023), algorithm 2",
    times=UniformPairs(karras_sigmas(40, append_zero=False)),
    coordinates="karras",
    model="consistency",
    teacher="required",
    pair=True,
)
def cd(
    at: Evaluation,
    *,
    solver: str | TeacherStep = "heun",
    distance: Norm | Between = mean_square,
    weight: PairWeight | None = None,
) -> Weighted:
    """Consistency distillation: E w d(f(x, t), f^-(y, s)), y one step of the teacher from x.

    The target is usually an average of the model's network (0.95). Where s = 0 it is the clean
    sample, and nothing that the target's network returns is used.

    Args:
        solver: "heun", of order 2, "euler", or a `TeacherStep`.
        distance: a norm of f - f^- per sample, or a distance `Between` both, such as
            `lpips_distance()`.
        weight: w(t, s), float64 [B] each; None is 1.
    """
    made, aim = consistency_pair(at, solver)
    return measured(at, made, aim, distance, weight)


@loss(
    identity="eulerian",
    source="Song et al., 'Consistency Models' (2023), algorithm 3 and section 6",
    times=SquareRootPairs(),
    coordinates="karras",
    model="consistency",
    pair=True,
)
def ct(
    at: Evaluation,
    *,
    distance: Norm | Between = mean_square,
    weight: PairWeight | None = None,
) -> Weighted:
    """Consistency training as first published: E d(f(x, t), f^-(y, s)), the same noise in x and y.

    The target is an average of the model's network, `cm_ema_rate`, and the number of levels grows:
    `times=SquareRootPairs(total)`. Where s = 0 the target is the clean sample, and nothing that its
    network returns is used.

    Args:
        distance: a norm of f - f^- per sample, or a distance `Between` both, such as
            `lpips_distance()`.
        weight: w(t, s), float64 [B] each; None is 1.
    """
    made, aim = consistency_pair(at)
    return measured(at, made, aim, distance, weight)


@loss(
    identity="eulerian",
    source="Song & Dhariwal, 'Improved Techniques for Training Consistency Models' (2023), "
    "section 3",
    times=DoublingPairs(),
    coordinates="karras",
    model="consistency",
    pair=True,
)
def ict(
    at: Evaluation,
    *,
    distance: Norm | Between | None = None,
    weight: PairWeight | None = inverse_gap,
) -> Weighted:
    """Improved consistency training: no teacher, no average as target, pseudo-Huber, 1 / (t - s).

    Both states have the same noise. Train with few pairs of levels first and double their number on
    the way: `times=DoublingPairs(total)`. Where s = 0 the target is the clean sample, and nothing
    that its network returns is used.

    Args:
        distance: a norm of f - f^- per sample, or a distance `Between` both; None is
            `pseudo_huber()`, of the norm of the sample.
        weight: w(t, s), float64 [B] each; None is 1.
    """
    made, aim = consistency_pair(at)
    return measured(at, made, aim, pseudo_huber() if distance is None else distance, weight)
