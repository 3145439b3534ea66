"""Consistency in pairs: the model at a level t, and what it should be by a lower level s.

The lower state lies on the same trajectory: by a step of a teacher's ODE, or without one by the
same noise. Where s = 0 the model should be the clean sample itself; the target's network is called
at t there, and nothing that it returns is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.mistakes.glances import can_be_read
from cmsolvers.losses.evaluation import terms
from cmsolvers.losses.evaluation.boundary import look_at_boundary
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.drawn_levels import clean_ends, look
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.model_views import ModelView
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.perceptual import Between
from cmsolvers.losses.formulas.teacher_steps import TeacherStep, stepped
from cmsolvers.losses.formulas.weights import Norm, PairWeight


def ends_clean(at: Evaluation) -> Tensor | bool:
    """Where s = 0: True or False for all samples where no device must be read, else bool [B]."""
    if at.ends_clean is None:
        found = look(at, at.t, at.s)
        if found is not None:
            at.ends_clean = clean_ends(found)
    if at.ends_clean is None:
        zero = at.s == 0
        if not (can_be_read(zero) and zero.device.type == "cpu"):
            return zero
        if not bool(zero.any()):
            at.ends_clean = False
        elif bool(zero.all()):
            at.ends_clean = True
        else:
            return zero
    return at.ends_clean


def called_at(at: Evaluation, clean: Tensor | bool) -> Tensor:
    """The levels [B] at which teacher and target are called: s, and t where s is 0."""
    if isinstance(clean, Tensor):
        return torch.where(clean, at.t, at.s)
    return at.t if clean else at.s


def pair_states(
    at: Evaluation, clean: Tensor | bool, solver: str | TeacherStep | None
) -> tuple[State, State]:
    """The states at t and at `called_at`: by a step of the teacher, or with None by the same z."""
    if clean is True:
        (x,) = at.states(at.t)
        return x, x
    end = called_at(at, clean)
    if solver is None:
        x, y = at.states(at.t, end)
        return x, y
    (x,) = at.states(at.t)
    return x, stepped(solver, at.teacher, x, end)


def student_at(at: Evaluation, x: State) -> Combination:
    """f(x, t) of the model, which is looked at once: is it a consistency function?"""
    found = at.student(x)
    look_at_boundary(at)
    return found


def aim_at(at: Evaluation, view: ModelView, y: State, clean: Tensor | bool) -> Combination:
    """f^-(y, s) of a view, and x_0 where s = 0; without gradient."""
    if clean is True:
        return or_clean(at, of(at.x0), clean)
    return or_clean(at, view(y).detach(), clean)


def or_clean(at: Evaluation, made: Combination, clean: Tensor | bool) -> Combination:
    """A combination, and x_0 in the rows that are clean: their weights are exactly 0."""
    if not isinstance(clean, Tensor):
        return of(at.x0.detach()) if clean else made
    kept = (~clean).double()
    return made * kept + of(at.x0.detach()) * (1.0 - kept)


def consistency_pair(
    at: Evaluation, solver: str | TeacherStep | None = None
) -> tuple[Combination, Combination]:
    """f(x, t) and f^-(y, s), which a consistency function makes equal.

    Args:
        at: the evaluation.
        solver: of the teacher's step from x to y; None: both have the same noise.
    """
    clean = ends_clean(at)
    x, y = pair_states(at, clean, solver)
    made = student_at(at, x)
    return made, aim_at(at, at.target, y, clean)


def measured(
    at: Evaluation,
    made: Combination,
    aim: Combination,
    distance: Norm | Between,
    weight: PairWeight | None = None,
) -> terms.Weighted:
    """w(t, s) d(f, f^-), [B].

    Args:
        at: the evaluation.
        made: with gradient.
        aim: without.
        distance: a norm of their difference, or a distance `Between` two tensors.
        weight: w(t, s) -> [B]; None is 1.

    Raises:
        TypeError: distance or weight cannot be called.
        ValueError: what they return is not one number per sample.
    """
    if weight is not None:
        check.function("weight", weight)
    if isinstance(distance, Between):
        found = distance.function(made.tensor(), aim.tensor())
    else:
        found = check.function("distance", distance)(made - aim)
    value = terms.distances("distance", found, at.x0)
    return terms.Weighted(value, None if weight is None else weight(at.t, at.s))
