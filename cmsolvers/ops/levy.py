"""Which normals make an increment of a Brownian path, and with which weights.

[0, length] is cut into TREES equal parts with independent increments; each part is bridged by
Levy's construction. Times are fractions of the length. Draw k < TREES is the increment of part k:
the root of the part's length times z. Draw 2^level + index is the node in the middle of the dyadic
interval `index` of that level: its distance from the line between the interval's ends is half the
root of the interval's length times z. On the last level, `depth`, the distance is not only known in
the middle: at the fraction f of a cell of length h it is sqrt(h f (1 - f)) z.

`terms` (on the host) and `table` (a row per sample, on any device) do the same float64 operations,
so they give the same bits.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

FIRST_LEVEL = 5
"""32 trees: a query of a usual sampler's step then sums a third fewer normals than with one tree.
An increment over all of [0, 1] sums 32."""

TREES = 1 << FIRST_LEVEL
MAX_DEPTH = 31
"""Nodes of level 31 have the last draws below 2^32."""


def terms(
    start: float, end: float, length: float, depth: int, unit: bool
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Draws and weights of W(end) - W(start), coarse before fine.

    Args:
        start: a time, a fraction in [0, 1].
        end: a time, a fraction in [0, 1].
        length: in units of time.
        depth: the last level.
        unit: divide by the standard deviation.
    """
    low, high = min(start, end), max(start, end)
    x, y = low * TREES, high * TREES
    i, j = _cell(x, TREES), _cell(y, TREES)
    scale = math.sqrt(length / TREES)
    draws = list(range(i, j + 1))
    weights = [(min(y - k, 1.0) - max(x - k, 0.0)) * scale for k in draws]
    for level in range(FIRST_LEVEL, depth + 1):
        size = 1 << level
        x, y = low * size, high * size  # a power of two: exact
        i, j = _cell(x, size), _cell(y, size)
        f, g = x - i, y - j
        scale = math.sqrt(length / size)
        p, q = (_hat(f), _hat(g)) if level < depth else (_arch(f), _arch(g))
        if i == j:
            draws.append(size + i)
            weights.append((q - p) * scale)
        else:
            draws += (size + i, size + j)
            weights += (-p * scale, q * scale)
    divisor = -1.0 if end < start else 1.0
    if unit:
        apart = (high - low) * length
        in_cell = ((g - f) * (g - f) + (q - p) * (q - p)) * (scale * scale)
        divisor *= math.sqrt(in_cell if i == j else apart)
    kept = [(d, w / divisor) for d, w in zip(draws, weights, strict=True) if w != 0.0]
    return tuple(d for d, _ in kept), tuple(w for _, w in kept)


cached_terms = lru_cache(maxsize=1024)(terms)
"""`terms`, for schedules that are run again and again."""


def table(start: Tensor, end: Tensor, length: float, depth: int, unit: bool) -> Tensor:
    """`terms` for each sample: (draw, weight), float64 [B, n, 2], some of weight 0.

    Args:
        start: float64 [B].
        end: float64 [B]. A unit increment of no length is 0.
        length: as `terms`.
        depth: as `terms`.
        unit: as `terms`.
    """
    low, high = torch.minimum(start, end)[:, None], torch.maximum(start, end)[:, None]
    trees = torch.arange(TREES, dtype=torch.float64, device=start.device)
    parts = (high * TREES - trees).clamp(0.0, 1.0) - (low * TREES - trees).clamp(0.0, 1.0)
    roots = torch.stack((trees.expand_as(parts), parts * math.sqrt(length / TREES)), dim=2)
    sizes = torch.full_like(trees[: depth + 1 - FIRST_LEVEL], 2.0).cumprod(0) * (0.5 * TREES)
    scales = (length / sizes).sqrt()
    x, y = low * sizes, high * sizes
    i, j = torch.minimum(x.floor(), sizes - 1.0), torch.minimum(y.floor(), sizes - 1.0)
    f, g = x - i, y - j
    p, q = torch.minimum(f, 1.0 - f), torch.minimum(g, 1.0 - g)
    f, g = f[:, -1], g[:, -1]
    p[:, -1], q[:, -1] = (f * (1.0 - f)).sqrt(), (g * (1.0 - g)).sqrt()
    together = i == j
    first, second = torch.where(together, q - p, -p), torch.where(together, 0.0, q)
    nodes = torch.stack((sizes + i, first * scales, sizes + j, second * scales), dim=2)
    result = torch.cat((roots, nodes.reshape(len(nodes), -1, 2)), dim=1)
    divisor = torch.where(end < start, -1.0, 1.0).double()
    if unit:
        apart = (high - low)[:, 0] * length
        steps = (g - f) * (g - f) + (q - p)[:, -1] * (q - p)[:, -1]
        variance = torch.where(together[:, -1], steps * (scales[-1] * scales[-1]), apart)
        divisor = divisor * torch.where(variance == 0.0, 1.0, variance).sqrt()
    result[..., 1] /= divisor[:, None]
    return result


def entangled(start: float, end: float, depth: int) -> bool:
    """Whether both times lie inside one cell of the last level: their joint law is not right."""
    x, y = start * (1 << depth), end * (1 << depth)
    return math.floor(x) == math.floor(y) and not x.is_integer() and not y.is_integer()


def _cell(x: float, size: int) -> int:
    return min(math.floor(x), size - 1)


def _hat(f: float) -> float:
    return min(f, 1.0 - f)


def _arch(f: float) -> float:
    return math.sqrt(f * (1.0 - f))
