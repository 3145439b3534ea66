"""The noise over more than 10^8 draws: moments, tails and correlations, each as a z-score."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmsolvers import noise

CHUNK = 10_000_000
CHUNKS = 11
LIMIT = 5.0  # standard deviations; about thirty scores are taken, all with fixed seeds

MOMENTS = {1: (0.0, 1.0), 2: (1.0, 2.0), 3: (0.0, 15.0), 4: (3.0, 96.0)}
"""E z^k and the variance of z^k for a unit normal."""


def chunk(k: int, draw: int = 0, **arguments: int) -> Tensor:
    """CHUNK draws; chunk k holds other samples than all others."""
    return noise.normal((CHUNK // 1000, 1000), 20240, draw=draw, offset=k * CHUNK, **arguments)


def correlation(a: Tensor, b: Tensor) -> tuple[float, float]:
    """z-scores of the correlation of the values, and of their squares."""
    a, b = a.flatten().double(), b.flatten().double()
    first = float(a @ b) / math.sqrt(a.numel())
    squares = float((a * a - 1) @ (b * b - 1)) / math.sqrt(4 * a.numel())
    return first, squares


def test_few_draws():
    """The quick version, for every run."""
    z = noise.normal((1000, 1000), 11).double()
    for k, (mean, variance) in MOMENTS.items():
        assert abs(float((z**k).mean()) - mean) < LIMIT * math.sqrt(variance / z.numel())
    for other in (
        noise.normal((1000, 1000), 12),
        noise.normal((1000, 1000), 11, draw=1),
        z.roll(1, 0),
    ):
        assert max(map(abs, correlation(z, other))) < LIMIT
    assert correlation(z, noise.normal((1000, 1000), 11))[0] > 900  # negative control


@pytest.mark.slow
def test_moments_and_tails():
    n = CHUNK * CHUNKS
    sums = dict.fromkeys(MOMENTS, 0.0)
    beyond = {t: [0, 0] for t in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)}
    largest = 0.0
    for k in range(CHUNKS):
        z = chunk(k).double()
        power = torch.ones_like(z)
        for order in MOMENTS:
            power *= z
            sums[order] += float(power.sum())
        for t, counts in beyond.items():
            counts[0] += int((z > t).sum())
            counts[1] += int((z < -t).sum())
        largest = max(largest, float(z.abs().max()))
    for order, (mean, variance) in MOMENTS.items():
        score = (sums[order] / n - mean) / math.sqrt(variance / n)
        assert abs(score) < LIMIT, f"moment {order}: {score:.2f} standard deviations off"
    for t, counts in beyond.items():
        p = 0.5 * math.erfc(t / math.sqrt(2))
        for count in counts:
            score = (count - n * p) / math.sqrt(n * p * (1 - p))
            assert abs(score) < LIMIT, f"beyond {t}: {count}, expected {n * p:.0f}"
    assert 5.0 < largest < 6.8


PAIRS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "draws": lambda k: (chunk(k), chunk(k, draw=1)),
    "streams": lambda k: (chunk(k), chunk(k, stream=1)),
    "samples": lambda k: (chunk(k)[1:], chunk(k)[:-1]),
    "elements": lambda k: (chunk(k)[:, 1:], chunk(k)[:, :-1]),
    "elements two apart": lambda k: (chunk(k)[:, 2:], chunk(k)[:, :-2]),
    "groups": lambda k: (chunk(k)[:, 4:], chunk(k)[:, :-4]),
    "seeds": lambda k: (
        noise.normal((CHUNK // 1000, 1000), k),
        noise.normal((CHUNK // 1000, 1000), k + CHUNKS),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_correlations(name):
    scores = [correlation(*PAIRS[name](k)) for k in range(CHUNKS)]
    for kind, each in zip(("values", "squares"), zip(*scores, strict=True), strict=True):
        score = sum(each) / math.sqrt(CHUNKS)
        assert abs(score) < LIMIT, f"{name}, {kind}: {score:.2f} standard deviations"
