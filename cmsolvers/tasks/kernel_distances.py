"""Maximum mean discrepancy: distances between sets of points by a kernel, without bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.tasks.neighbours import points

Kernel: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`kernel(a, b)`: float64 [n, d] and [m, d] -> [n, m]."""
BLOCK = 1 << 22
"""Values of a kernel that are in memory at once."""


def gaussian_kernel(bandwidth: float) -> Kernel:
    """k(a, b) = exp(-|a - b|^2 / (2 h^2)).

    Args:
        bandwidth: h, positive.
    """
    h = check.positive("bandwidth", bandwidth)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.addmm(b.square().sum(1), a, b.T, alpha=-2.0)
        squares = squares.add_(a.square().sum(1, keepdim=True)).clamp_min_(0.0)
        return squares.mul_(-0.5 / h**2).exp_()

    return kernel


def polynomial_kernel(degree: int = 3) -> Kernel:
    """k(a, b) = (a.b / d + 1)^degree, d the number of features: the kernel of KID."""
    check.count("degree", degree)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return ((a @ b.T).div_(a.shape[1]) + 1.0).pow_(degree)

    return kernel


def median_bandwidth(a: Tensor, *, most: int = 1000) -> float:
    """The median distance between different points among the first `most`: a usual h.

    Raises:
        TypeError, ValueError: no points [n >= 2, d], or all of them equal.
    """
    some = points("a", a)[: check.count("most", most, least=2)].double()
    if len(some) < 2:
        raise ValueError(f"a must have at least 2 points; got {len(some)}")
    distance = float(torch.pdist(some).median())
    if not distance > 0:
        raise ValueError("a must have different points; most of them are equal")
    return distance


def mmd(a: Tensor, b: Tensor, kernel: Kernel) -> float:
    """Squared maximum mean discrepancy between two sets, the unbiased estimate.

    mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j), in float64.
    Unbiased, it is 0 on average for two sets of one distribution, and may be negative.

    Args:
        a: points [n, d], n >= 2.
        b: points [m, d], m >= 2.
        kernel: `gaussian_kernel(h)`, `polynomial_kernel(3)` or any other.

    Raises:
        TypeError: no floating tensors.
        ValueError: wrong shapes, fewer than two points, values that are not finite.

    Source: Gretton et al., "A Kernel Two-Sample Test" (2012), eq. 3.
    """
    first, second = points("a", a).double(), points("b", b).double()
    if first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            f"a and b must have at least 2 points of as many numbers; got {list(a.shape)} and "
            f"{list(b.shape)}"
        )
    own = [_sum(x, x, kernel, diagonal=False) / len(x) / (len(x) - 1) for x in (first, second)]
    both = _sum(first, second, kernel, diagonal=True) / len(first) / len(second)
    return own[0] + own[1] - 2 * both


def _sum(a: Tensor, b: Tensor, kernel: Kernel, *, diagonal: bool) -> float:
    chunk = max(1, BLOCK // len(b))
    total = 0.0
    for start in range(0, len(a), chunk):
        block = kernel(a[start : start + chunk], b)
        if not diagonal:
            places = torch.arange(len(block), device=block.device)
            block[places, places + start] = 0.0
        total += float(block.sum())
    return total


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance of features: unbiased MMD^2 with the cubic kernel, averaged over subsets.

    With Inception's features it is KID; with others it must not be called so.

    Args:
        a: features [n, d].
        b: features [m, d].
        subsets: how many pairs of subsets.
        size: points of a subset; at most n and m.
        seed: which points.

    Returns:
        The mean over subsets, and its standard error: how far the mean would move with other
        subsets of these points (other points move it more).

    Raises:
        TypeError, ValueError: as `mmd`.

    Source: Binkowski et al., "Demystifying MMD GANs" (2018), section 4.
    """
    first, second = points("a", a), points("b", b)
    check.count("subsets", subsets, least=2)
    size = min(check.count("size", size, least=2), len(first), len(second))
    kernel = polynomial_kernel(3)
    found = []
    for draw in range(subsets):
        rows = [
            noise.uniform((1, len(x)), seed, stream=noise.OTHER, draw=2 * draw + i)[0]
            .argsort(stable=True)[:size]
            .to(x.device)
            for i, x in enumerate((first, second))
        ]
        found.append(mmd(first[rows[0]], second[rows[1]], kernel))
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), float(values.std()) / math.sqrt(subsets)
