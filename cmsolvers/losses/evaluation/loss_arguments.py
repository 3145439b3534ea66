"""Arguments that all losses share, checked: key and step, a schedule's end, teacher and target."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise

if TYPE_CHECKING:
    from cmsolvers.losses.evaluation.evaluation import Evaluation


def place(key: noise.SeedLike, step: int | Tensor, x0: Tensor) -> tuple[noise.Key, int]:
    """The key and the number of the draw; a step on a device becomes a part of the key."""
    if isinstance(step, Tensor):
        if step.dtype is not torch.int64:
            raise TypeError(
                f"step must be an int or an int64 tensor [1]; got {check.describe(step)}"
            )
        return noise.key(key, len(x0), draw=step, device=x0.device), 0
    draw = check.index(step)
    if draw is None or not 0 <= draw < 1 << 32:
        raise ValueError(
            f"step must be an int in [0, 2^32), or such a tensor; got {check.describe(step)}"
        )
    if type(key) is int and 0 <= key < 1 << 63 and not torch.compiler.is_compiling():
        return _numbered(key), draw
    return noise.key(key, len(x0), device=x0.device), draw


@lru_cache(16)
def _numbered(seed: int) -> noise.Key:
    """The key of a number, which steps share: a `Key` is never changed."""
    return noise.key(seed, 1)


def progress(clock: str, total: int | None, step: int | Tensor) -> float | Tensor:
    """step / total, at most 1; 1 without a total: where the schedule ends."""
    if total is None:
        return 1.0
    count = check.count(clock, total)
    if isinstance(step, Tensor):
        return (step.double() / count).clamp(max=1.0)
    return min(1.0, step / count)


def kept_by_autograd(x0: Tensor) -> Tensor:
    """The data; a copy of those made in inference mode, such as latents, which autograd refuses."""
    if x0.is_inference() and not torch.is_inference_mode_enabled():
        return x0.clone()
    return x0


def in_evaluation(name: str, model: object) -> None:
    """ValueError for a module in training mode, whose dropout and statistics would be at work."""
    if not (isinstance(model, torch.nn.Module) and model.training):
        return
    for part in model.modules():
        drops = isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0
        if part.training and (drops or isinstance(part, torch.nn.modules.batchnorm._NormBase)):
            raise ValueError(
                f"{name} must be in evaluation mode: it has dropout or batch statistics at work; "
                f"call {name}.eval()"
            )


def same_path(at: Evaluation) -> None:
    """ValueError where a target has other coordinates than the model."""
    if at.target.path != at.path:
        raise ValueError(
            f"target must be in the coordinates of the model, {at.path}; got {at.target.path}"
        )
