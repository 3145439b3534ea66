"""What a network of two times gets as the second one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.protocol import Scalar

SecondTime: TypeAlias = "Callable[[Scalar, Scalar], Scalar]"
"""(t, s), floats or float64 [B], -> what the network gets as its second time."""


def step_index(finest: int = 128) -> SecondTime:
    """The second time of a shortcut model: log2 of 1 / (t - s), for steps 1, 1/2, ..., 1 / finest.

    A shorter step than the finest, s = t too, has the index of the finest, log2(finest): there the
    model is the velocity. It needs no power of 2 in between.

    Args:
        finest: 1 / the smallest step, a power of 2.

    Raises:
        ValueError: not a power of 2.

    Source: Frans et al., "One Step Diffusion via Shortcut Models" (2024), section 4.
    """
    count = check.count("finest", finest)
    if count & (count - 1):
        raise ValueError(f"finest must be a power of 2; got {finest}")

    def index(t: Scalar, s: Scalar) -> Scalar:
        gap = t - s
        if isinstance(gap, Tensor):
            return -torch.log2(gap.clamp_min(1.0 / count))
        return -math.log2(max(gap, 1.0 / count))

    return index
