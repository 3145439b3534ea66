"""Steps of a teacher's probability-flow ODE, as functions to pass or to replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.model_views import ModelView
from cmsolvers.losses.evaluation.states import State, moved_along

TeacherStep: TypeAlias = Callable[[ModelView, State, Tensor], State]
"""`step(teacher, x, end) -> State` at level `end` [B], by `teacher.velocity(state)`,
`teacher.clean(state)` and so on; where `end` is the level of x the state must stay."""


def euler(teacher: ModelView, x: State, end: Tensor) -> State:
    """x + (s - t) v(x, t), of order 1; in Karras and in flow coordinates the step of DDIM.

    Source: Song et al., "Denoising Diffusion Implicit Models" (2021), eq. 13.
    """
    return moved_along(x, teacher.velocity(x), end)


def heun(teacher: ModelView, x: State, end: Tensor) -> State:
    """x + (s - t) / 2 (v(x, t) + v(y, s)) with y from Euler's step, of order 2.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
        (2022), algorithm 1.
    """
    first = teacher.velocity(x)
    second = teacher.velocity(moved_along(x, first, end))
    return moved_along(x, (first + second) * 0.5, end)


_NAMED: dict[str, TeacherStep] = {"heun": heun, "euler": euler}


def teacher_step(solver: str | TeacherStep) -> TeacherStep:
    """A step by name, "heun" or "euler", or the callable itself.

    Raises:
        TypeError: neither a name nor a callable.
        ValueError: an unknown name.
    """
    if not isinstance(solver, str):
        found: TeacherStep = check.function("solver", solver)
        return found
    if solver not in _NAMED:
        raise ValueError(f'solver must be "heun", "euler" or a callable; got {solver!r}')
    return _NAMED[solver]


def stepped(solver: str | TeacherStep, teacher: ModelView, x: State, end: Tensor) -> State:
    """The state after a step, checked, without gradient."""
    with torch.no_grad():
        found = teacher_step(solver)(teacher, x, end)
    if not isinstance(found, State):
        raise TypeError(f"solver must return a State; got {check.describe(found)}")
    check.model_output("solver", found.x, x.x)
    return found
