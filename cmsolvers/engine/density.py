"""The density of a new state given the one before, where a step is Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_density(mean: Tensor, y: Tensor, spread: float, form: str) -> Tensor:
    """Log density of y under N(mean, spread^2), float64 [B]; the sum over a sample is in float64.

    Args:
        mean: [B, ...].
        y: like mean.
        spread: standard deviation, positive.
        form: "sum", with all constants; "mean", that over the number of elements; "unnormalised",
            -mean (y - mean)^2.
    """
    away = y.to(mean.dtype) - mean
    elements = math.prod(y.shape[1:])
    count = max(elements, 1)
    square = away.square() if form == "unnormalised" else (away / spread).square()
    total = square.reshape(len(y), elements).sum(1, dtype=torch.float64)
    if form == "unnormalised":
        return -total / count
    log_p = -0.5 * total - elements * math.log(spread * math.sqrt(2.0 * math.pi))
    return log_p / count if form == "mean" else log_p
