"""Nearest neighbours in sets of points, with memory that does not grow with the sets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cmsolvers import checks as check

BLOCK = 1 << 22
"""Distances that are in memory at once."""


def nearest_neighbours(
    samples: Tensor, data: Tensor, count: int = 1, *, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest points of a set to each sample, by Euclidean distance.

    Candidates are found with matrix products in float64 around the mean of the data; their
    distances are then taken from differences, so that small ones keep their digits.

    Args:
        samples: points [n, d].
        data: points [m, d].
        count: how many neighbours, 1 ... m (m - 1 with `excluded`).
        excluded: int64 [n], a row of data that each sample must not find; for a set's neighbours
            in itself `torch.arange(n)`.

    Returns:
        Distances float64 [n, count], ascending, and rows of data int64 [n, count].

    Raises:
        TypeError: no floating tensors.
        ValueError: wrong shapes, values that are not finite, count out of range.
    """
    first, second = points("samples", samples), points("data", data)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"data must be points of {first.shape[1]} numbers, as samples; got {second.shape[1]}"
        )
    most = len(second) - (excluded is not None)
    check.count("count", count, most=max(most, 1))
    if most < count:
        raise ValueError(f"data must have {count} other points or more; got {most}")
    # One more candidate than is needed: rounding may swap neighbours that are as far.
    wanted = min(count + 1, most)
    distances, rows = [], []
    for start, block in _squares(first, second):
        if excluded is not None:
            places = torch.arange(len(block), device=block.device)
            block[places, excluded[start : start + len(block)].to(block.device)] = torch.inf
        found = block.topk(wanted, dim=1, largest=False).indices
        part = first[start : start + len(block), None].double()
        exact = (part - second[found].double()).norm(dim=2)
        order = exact.argsort(dim=1, stable=True)[:, :count]
        distances.append(exact.gather(1, order))
        rows.append(found.gather(1, order))
    if not distances:
        empty = first.new_zeros(0, count)
        return empty.double(), empty.long()
    return torch.cat(distances), torch.cat(rows)


def _squares(first: Tensor, second: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances float64 of a few rows to all of the second set, and the first such row."""
    mean = second.double().mean(0)
    centred = second.double() - mean
    size = centred.square().sum(1)
    chunk = max(1, BLOCK // len(second))
    for start in range(0, len(first), chunk):
        part = first[start : start + chunk].double() - mean
        block = torch.addmm(size, part, centred.T, alpha=-2.0)
        yield start, block.add_(part.square().sum(1, keepdim=True)).clamp_min_(0.0)


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall: which share of each set lies in the other one's manifold.

    The manifold of a set is the union of balls around its points, each up to the point's k-th
    neighbour in the set. Precision is the share of fake points in that of the real ones: quality.
    Recall is the share of real points in that of the fake ones: coverage. Memory does not grow with
    the product of the sizes.

    Args:
        real: features [n, d], n > k.
        fake: features [m, d], m > k; both values are comparable only for sets of equal sizes.
        k: which neighbour, at least 1.

    Returns:
        (precision, recall), each in [0, 1].

    Raises:
        TypeError: no floating tensors.
        ValueError: wrong shapes, too few points, values that are not finite.

    Source: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative
        Models" (2019), eq. 1 and 2.
    """
    one, two = points("real", real), points("fake", fake)
    for name, value in (("real", one), ("fake", two)):
        if len(value) <= check.count("k", k):
            raise ValueError(f"{name} must have more than k = {k} points; got {len(value)}")
    return _covered(two, one, _radii(one, k)), _covered(one, two, _radii(two, k))


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour in its own set, float64 [n]."""
    distances, _ = nearest_neighbours(x, x, k, excluded=torch.arange(len(x)))
    return distances[:, -1]


def _covered(x: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of points within the radius of any centre."""
    if x.shape[1] != centres.shape[1]:
        raise ValueError(f"fake must have {centres.shape[1]} features; got {x.shape[1]}")
    bound = radii.square() * (1 + 1e-12)
    inside = sum(int((block <= bound).any(1).sum()) for _, block in _squares(x, centres))
    return inside / len(x)


def points(name: str, value: Tensor) -> Tensor:
    """A set of points, checked.

    Raises:
        TypeError: no floating tensor.
        ValueError: another shape than [n, d], no values, values that are not finite.
    """
    check.state(name, value)
    if value.ndim != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} must be points [n, d]; got shape {list(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} must be finite; got nan or inf among its values")
    return value.detach()
