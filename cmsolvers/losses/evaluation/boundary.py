"""A warning where a model is no consistency function: f(x, sigma_min) is far from x."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmsolvers.denoisers import Preconditioned
from cmsolvers.denoisers.flow_maps import FlowMap
from cmsolvers.engine.mistakes.glances import Glance, can_be_read, root_mean_square
from cmsolvers.engine.mistakes.once import Once
from cmsolvers.losses.evaluation.looks import by_how_much, is_known, look
from cmsolvers.losses.evaluation.randomness import same_statistics
from cmsolvers.processes.wrappers import owner_of

if TYPE_CHECKING:
    from cmsolvers.losses.evaluation.evaluation import Evaluation

SIGMA_MIN = 0.002
"""The level of the look: the usual sigma_min, and next to nothing for data of the usual size."""
_USUAL = 0.02  # data above this is large beside SIGMA_MIN
_MOST = 0.5  # of the data: more than this is changed by no consistency function

ONCE = Once()


def look_at_boundary(at: Evaluation) -> None:
    """Warn once if a model changes data at sigma_min, in its first call of a loss.

    One evaluation without gradient, once per model, of those alone whose type does not say that
    they are preconditioned. It changes neither torch's generators nor running statistics, and what
    a device has not found out yet is said at a later step.
    """
    if isinstance(at.student.inner, (Preconditioned, FlowMap)) and not ONCE.waits:
        return
    if not can_be_read(at.x0) or at.x0.numel() == 0 or ONCE.warned:
        return
    model: Any = at.student.model
    owner = owner_of(model)
    if is_known(model) or not ONCE.is_first(id(owner)):
        ONCE.settle()
        return
    look(ONCE, lambda: _change(at), _judge)


def _change(at: Evaluation) -> Tensor:
    """Root mean squares of f(x0, sigma_min) - x0 and of x0, [2]."""
    dtype = torch.promote_types(at.x0.dtype, torch.float32)
    levels = at.x0.new_full((len(at.x0),), at.path.level(SIGMA_MIN), dtype=dtype)
    model, x0 = at.student.model, at.x0.detach()
    with torch.no_grad(), at.same.replay(), same_statistics(model):
        change = model(x0.clone(), levels, **at.student.extra) - x0
    found = torch.stack((root_mean_square(change), root_mean_square(x0).to(change.device)))
    return found.nan_to_num(nan=math.inf, posinf=math.inf)


def _judge(glance: Glance) -> bool:
    """Warn of what was found; whether it was known."""
    found = glance.read()
    if found is None:
        return False
    change, size = found
    if size >= _USUAL and change > _MOST * size:
        ONCE.warn(
            "boundary",
            f"model must be a consistency function, f(x, sigma_min) = x; at sigma {SIGMA_MIN} it "
            f"{by_how_much(change, size, 'data')}. "
            "ConsistencyFunction(net, sigma_data) makes one of a raw network",
        )
    return True
