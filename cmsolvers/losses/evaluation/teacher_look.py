"""A warning where a teacher is no denoiser: it does not give nearly clean data back."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmsolvers.engine.mistakes.glances import Glance, can_be_read, root_mean_square
from cmsolvers.engine.mistakes.once import Once
from cmsolvers.losses.evaluation.looks import by_how_much, is_known, look
from cmsolvers.losses.evaluation.states import State
from cmsolvers.processes.elementary import broadcastable

if TYPE_CHECKING:
    from cmsolvers.losses.evaluation.evaluation import Evaluation

PART = 0.1
"""Noise of the look, in parts of the data's size: small, and in the range that networks know."""
_MOST = 0.75
"""Change in parts of the data's size that no denoiser makes there: the error of the mean of x_0 is
at most the noise, 0.1. An eps, v or velocity network and a raw F change more than all of it."""
_LEAST = 0.02  # smaller data is nothing to a network's levels

ONCE = Once()


def look_at_teacher(at: Evaluation) -> None:
    """Warn once if a teacher is no denoiser, in its first call of a loss.

    A denoiser gives data with a little noise back nearly as it is, whatever the data. One
    evaluation without gradient, once per teacher, of those alone whose type does not say what they
    are; functions made anew in the same place are one teacher. Torch's generators and running
    statistics stay as they were, and what a device has not found out yet is said at a later step.
    """
    if not at.has_teacher:
        return
    teacher = at.teacher.model
    known = is_known(teacher, partials=True)
    if known and not ONCE.waits:
        return
    if not can_be_read(at.x0) or at.x0.numel() == 0:
        return
    if known or ONCE.warned or not ONCE.is_first(_identity(teacher)):
        ONCE.settle()
        return
    look(ONCE, lambda: _change(at), _judge)


def _identity(model: object) -> Hashable:
    """What a callable is known by: a function by its code, a method by its object."""
    owner = getattr(model, "__self__", model)
    return getattr(owner, "__code__", None) or id(owner)


def _change(at: Evaluation) -> Tensor:
    """Root mean squares of D(x, sigma) - x_0, of x_0, and sigma, [3]."""
    view, x0 = at.teacher.at_home(), at.x0.detach()
    size = root_mean_square(x0).double()
    sigma = (PART * size).clamp_min(PART * _LEAST)
    level = view.own.level(sigma.expand(len(x0)))
    alpha, noise = (
        broadcastable(part, x0) for part in (view.own.alpha(level), view.own.sigma(level))
    )
    x = (alpha * x0 + noise * at.noise()).to(x0.dtype)
    change = root_mean_square(view(State(x, level)).tensor() - x0)
    found = torch.stack((change.double(), size, sigma))
    return found.nan_to_num(nan=math.inf, posinf=math.inf)


def _judge(glance: Glance) -> bool:
    """Warn of what was found; whether it was known."""
    found = glance.read()
    if found is None:
        return False
    change, size, sigma = found
    if size >= _LEAST and change > _MOST * size:
        ONCE.warn(
            "teacher",
            f"teacher must be a denoiser, which gives nearly clean data back; of data with noise "
            f"of sigma {sigma:.3g} it "
            f"{by_how_much(change, size, 'it')}. Of a network of "
            "eps, v, velocity or F denoisers.from_eps, from_v, from_flow or EDM make a denoiser",
        )
    return True
