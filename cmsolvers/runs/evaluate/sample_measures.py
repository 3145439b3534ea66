"""The numbers of an evaluation, each with how far chance may move it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.runs.evaluate.features import Features
from cmsolvers.tasks import kernel_distances, metrics
from cmsolvers.tasks.neighbours import nearest_neighbours, precision_recall

Rows: TypeAlias = dict[str, dict[str, object]]
"""Results by the name of the measure."""
Measure: TypeAlias = Callable[[Tensor, Tensor], float]

PAIRED = 10_000
"""Points of each set, at most, in measures whose work grows with the product of the sizes."""
IN_KERNEL = 5_000
"""The same for MMD with the Gaussian kernel."""
RESAMPLED = 20
"""Bootstrap resamples of the samples."""
CHEAP = 2e9
"""Multiplications of a measure, above which it is not bootstrapped."""
NEIGHBOUR = 3
"""Which neighbour's distance is the radius of precision and recall."""


@dataclass(frozen=True)
class Sets:
    """Features of the samples, the data, and data that were held out."""

    samples: Tensor
    data: Tensor
    held: Tensor | None
    seed: int

    def some(self, x: Tensor, most: int) -> Tensor:
        """At most so many rows, chosen by the seed."""
        return x if len(x) <= most else x[order(len(x), self.seed)[:most]]


def order(n: int, seed: int) -> Tensor:
    """The numbers 0 ... n - 1 in an order that the seed decides."""
    u = noise.uniform((1, n), seed, stream=noise.OTHER, draw=7, dtype=torch.float64)[0]
    return u.argsort(stable=True)


def bootstrap(
    measure: Callable[[Tensor], float], x: Tensor, seed: int, work: float
) -> float | None:
    """Standard deviation of a measure over resamples of x; None where it would take long.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979).
    """
    if work > CHEAP / RESAMPLED:
        return None
    found = []
    for draw in range(RESAMPLED):
        u = noise.uniform((1, len(x)), seed, stream=noise.OTHER, draw=100 + draw)[0]
        found.append(measure(x[(u * len(x)).long().clamp_max(len(x) - 1)]))
    return float(torch.tensor(found, dtype=torch.float64).std())


def all_measures(sets: Sets, features: Features) -> Rows:
    """Every measure of samples against data, and of held-out data against data beside it.

    Where no data are held out, "halves" has one random half of the data against the other.
    """
    measured: Rows = {}
    x, data, d = sets.samples, sets.data, sets.samples.shape[1]
    if sets.held is not None:
        other, real, beside = sets.held, data, "held_out"
    else:
        mixed = order(len(data), sets.seed)
        other, real = data[mixed[::2]], data[mixed[1::2]]
        beside = "halves"
    floor = min(len(other), len(real)) >= 2

    def entered(
        name: str, measure: Callable[[Tensor, Tensor], float], most: int, work: int
    ) -> None:
        target = sets.some(data, most)
        some = sets.some(x, most)
        row: dict[str, object] = {"value": measure(some, target)}
        row["standard_error"] = bootstrap(lambda y: measure(y, target), some, sets.seed, work)
        if floor:
            row[beside] = measure(sets.some(other, most), sets.some(real, most))
        row["samples"], row["data"] = len(some), len(target)
        measured[name] = row

    entered(features.frechet, _frechet_to(data), 1 << 40, len(x) * d * d)
    # Sorting, which takes far longer than the products.
    entered("sliced_wasserstein", _sliced, PAIRED, 128 * len(x) * (d + 64))
    h = _bandwidth(sets.some(data, 1000))
    kernel = kernel_distances.gaussian_kernel(h)
    pairs = min(len(x), IN_KERNEL) * min(len(data), IN_KERNEL)
    entered(
        "mmd2", lambda a, b: kernel_distances.mmd(a, b, kernel), IN_KERNEL, 3 * pairs * (d + 32)
    )
    measured["mmd2"] |= {"kernel": f"exp(-|a - b|^2 / (2 h^2)), h = {h:.6g}, unbiased"}
    value, error = kernel_distances.kernel_distance(x, data, seed=sets.seed)
    row: dict[str, object] = {"value": value, "standard_error": error}
    if floor:
        row[beside] = kernel_distances.kernel_distance(other, real, seed=sets.seed)[0]
    row["kernel"] = "(a.b / d + 1)^3, unbiased, mean of 100 subsets of at most 1,000"
    measured[features.kernel] = row
    measured |= _manifolds(sets, other, real, beside)
    return measured


def _bandwidth(data: Tensor) -> float:
    """The median distance; where more than half of the data are equal, the mean one."""
    try:
        return kernel_distances.median_bandwidth(data)
    except ValueError as error:
        mean = float(torch.pdist(data.double()).mean())
        if not mean > 0:
            raise ValueError("data must have different features; all are equal") from error
        return mean


def _frechet_to(data: Tensor) -> Measure:
    """The Frechet distance, which knows the Gaussian of the data once and for all."""
    known = metrics.gaussian_fit(data)

    def measure(a: Tensor, b: Tensor) -> float:
        return metrics.gaussian_fit(a).distance(known if b is data else metrics.gaussian_fit(b))

    return measure


def _sliced(a: Tensor, b: Tensor) -> float:
    count = min(len(a), len(b))
    return metrics.sliced_wasserstein(a[:count], b[:count])


def _manifolds(
    sets: Sets, other: Tensor, real: Tensor, beside: str
) -> dict[str, dict[str, object]]:
    """Precision and recall, of as many samples as data; none where there are too few."""
    count = min(len(sets.samples), len(sets.data), PAIRED)
    if count <= NEIGHBOUR:
        return {}
    found = precision_recall(
        sets.some(sets.data, count), sets.some(sets.samples, count), k=NEIGHBOUR
    )
    least = min(len(other), len(real), PAIRED)
    floor = None
    if least > NEIGHBOUR:
        floor = precision_recall(sets.some(real, least), sets.some(other, least), k=NEIGHBOUR)
    rows: Rows = {}
    for i, name in enumerate(("precision", "recall")):
        share = found[i]
        rows[name] = {"value": share, "standard_error": math.sqrt(share * (1 - share) / count)}
        if floor is not None:
            rows[name][beside] = floor[i]
        rows[name] |= {"samples": count, "data": count, "k": NEIGHBOUR}
    return rows


def memorisation(sets: Sets) -> tuple[dict[str, object], Tensor, Tensor]:
    """Distances of samples to their nearest data, against those of data that were held out.

    Without held-out data, of each of the data to the nearest other one.

    Returns:
        The numbers, and of the samples (at most `PAIRED`, the first ones) distances [n] and rows
        of the data [n, 5].
    """
    x, data = sets.samples[:PAIRED], sets.data
    near, rows = nearest_neighbours(x, data, min(5, len(data)))
    if sets.held is not None:
        usual, _ = nearest_neighbours(sets.some(sets.held, PAIRED), data)
        beside = "held_out"
    else:
        places = order(len(data), sets.seed)[:PAIRED]
        usual, _ = nearest_neighbours(data[places], data, excluded=places)
        beside = "other_data"
    first, other = near[:, 0], usual[:, 0]
    low = float(other.quantile(0.01)) if len(other) <= 1 << 20 else float(other.min())
    about: dict[str, object] = {
        "samples": _described(first),
        beside: _described(other),
        "share_below_1_percent_of_it": float((first < low).double().mean()),
    }
    return about, first, rows


def _described(distances: Tensor) -> dict[str, float]:
    return {
        "mean": float(distances.mean()),
        "median": float(distances.median()),
        "smallest": float(distances.min()),
        "count": len(distances),
    }
