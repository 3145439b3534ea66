"""Norms of samples, with the same bits in any batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sums_of_squares(x: Tensor) -> Tensor:
    """Squared Euclidean norm of each sample, [B], in float32 at least; differentiable.

    The squares are added as a fixed tree over the logical elements, so that a sample's sum has the
    same bits in any batch and layout: torch.sum chooses the order of its additions by the size of
    the whole batch and the number of threads.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    size = math.prod(x.shape[1:])
    total = x.to(wide).reshape(x.shape[0], size).square()
    if size == 0:
        return total.new_zeros(x.shape[0])
    while size > 1:
        half = size // 2
        pairs = total[:, :half] + total[:, size - half :]
        total = pairs if size % 2 == 0 else torch.cat([pairs, total[:, half : half + 1]], dim=1)
        size -= half
    return total[:, 0]


def root_mean_square(x: Tensor) -> Tensor:
    """Root mean square of each sample, float64 [B]; 0 for samples of no elements."""
    return (sums_of_squares(x).double() / max(math.prod(x.shape[1:]), 1)).sqrt()
