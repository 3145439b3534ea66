"""The size of an error, sample by sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def root_mean_square(value: Tensor) -> Tensor:
    """Root mean square of each sample, float64 [B]; `value` is overwritten if it is contiguous.

    The squares are summed in a fixed tree of additions. torch.sum chooses the order of its
    additions by the size of the whole batch and the number of threads, so a sample's last bits,
    and with them its steps, would depend on its companions.
    """
    batch, n = value.shape[0], math.prod(value.shape[1:])
    if n == 0:
        return torch.zeros(batch, dtype=torch.float64, device=value.device)
    squares = value.reshape(batch, n)
    squares = squares.mul_(squares)
    size = n
    while n > 1:
        half = (n + 1) // 2
        squares[:, : n - half] += squares[:, half:n]
        n = half
    return torch.sqrt(squares[:, 0].double() / size)


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def scaled_error(
    error: Tensor, a: Tensor, b: Tensor, *, rtol: float, atol: float, larger: bool = False
) -> Tensor:
    """Root mean square of error / (atol + rtol max(|a|, |b|)), float64 [B].

    Args:
        error: [B, ...].
        a: a state, like error.
        b: another.
        rtol: relative tolerance.
        atol: absolute tolerance, positive.
        larger: divide by the larger of the two tolerances, not by their sum.

    Source: Hairer, Norsett & Wanner (1993), eq. II.4.11; Lu et al. (2022), appendix C.4, for the
    larger one.
    """
    scale = torch.maximum(a.detach().abs(), b.detach().abs()).mul_(rtol)
    scale = scale.clamp_min_(atol) if larger else scale.add_(atol)
    return root_mean_square(torch.div(error.detach(), scale, out=scale))
