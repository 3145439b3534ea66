"""Levels of each sample against the samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def column(level: Any, like: Tensor | int = 2) -> Any:
    """A tensor [B] as [B, 1, ...], to be multiplied with samples; numbers and [] as they are.

    Args:
        level: a number, or a tensor [] or [B].
        like: the samples [B, ...], whose dtype is taken too, or how many dimensions they have.
    """
    if not isinstance(level, Tensor) or level.ndim == 0:
        return level
    if isinstance(like, int):
        return level.reshape(-1, *[1] * (like - 1))
    return level.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def column64(level: Any, like: Tensor) -> Any:
    """The same in float64, whatever the samples are in; numbers become tensors [] too."""
    return column(torch.as_tensor(level, dtype=torch.float64), like.ndim)
