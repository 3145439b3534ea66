"""Pairs of levels of the consistency losses: curricula, ECT's, TCM's, LCM's and multistep ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import integrate

from cmsolvers import DDPM, noise
from cmsolvers.losses import (
    AnnealedPairs,
    ChainPairs,
    DoublingPairs,
    ECTPairs,
    LogNormalPairs,
    SquareRootPairs,
    TruncatedPairs,
    UniformPairs,
    cm_discretization,
    doubling_discretization,
)
from cmsolvers.schedules import karras_sigmas

F64 = torch.float64
EVERY = [
    DoublingPairs(100, 3, 50),
    SquareRootPairs(100, 2, 40),
    ECTPairs(q=2.0, stage_steps=20),
    TruncatedPairs(gap=ECTPairs(q=3.0, stage_steps=20)),
    ChainPairs(),
    AnnealedPairs(100, 8, 64),
]
by_name = pytest.mark.parametrize("times", EVERY, ids=lambda t: type(t).__name__)


@by_name
def test_levels_are_in_order_and_functions_of_key_and_step(times: Any) -> None:
    for step in (0, 30, 99):
        t, s = times.sample(400, 7, draw=step)
        assert t.dtype is s.dtype is F64 and t.shape == s.shape == (400,)
        assert bool((t > s).all()) and bool((s >= 0).all())
        again = times.sample(9, noise.Key(7), draw=step)
        assert all(torch.equal(a, b[:9]) for a, b in zip(again, (t, s), strict=True))
    assert not torch.equal(t, times.sample(400, 7, draw=98)[0])
    assert times.sample(0, 7)[0].shape == (0,)


@by_name
def test_a_step_in_a_tensor_gives_the_same_levels(times: Any) -> None:
    """As a captured training step has it, of one step or of each sample's own."""
    for step in (0, 19, 20, 57, 99, 100, 3000):
        found = times.sample(64, 7, draw=step)
        key = noise.key(7, 64, draw=torch.tensor([step]))
        also = times.sample(64, key)
        torch.testing.assert_close(also, found, rtol=1e-14, atol=0)
    steps = torch.arange(64) * 2
    mixed = times.sample(64, noise.key(7, 64, draw=steps))
    for i in (0, 20, 63):
        one = times.sample(64, 7, draw=2 * i)
        torch.testing.assert_close(mixed[0][i], one[0][i], rtol=1e-14, atol=0)
        torch.testing.assert_close(mixed[1][i], one[1][i], rtol=1e-14, atol=0)


def test_scheduled_pairs_are_those_of_their_grids() -> None:
    for step in (0, 25, 60, 99, 100, 10_000):
        k = min(step, 100)
        grid = karras_sigmas(doubling_discretization(k, 100, 3, 50), append_zero=False)
        expected = LogNormalPairs(grid).sample(50, 3, draw=step)
        assert all(map(torch.equal, DoublingPairs(100, 3, 50).sample(50, 3, draw=step), expected))
        grid = karras_sigmas(cm_discretization(k, 100, 2, 40), append_zero=False)
        expected = UniformPairs(grid).sample(50, 3, draw=step)
        assert all(map(torch.equal, SquareRootPairs(100, 2, 40).sample(50, 3, draw=step), expected))
    assert DoublingPairs().levels(0) == 1281 and SquareRootPairs().levels(5) == 151


def test_pairs_of_easy_consistency_tuning() -> None:
    """r = max(0, t (1 - q^-(a + 1) (1 + 8 sigmoid(-t))))."""
    t, r = ECTPairs().sample(200_000, 1)
    quantiles = torch.quantile(t.log(), torch.tensor([0.158655, 0.5, 0.841345], dtype=F64))
    assert quantiles.tolist() == pytest.approx([-3.1, -1.1, 0.9], abs=0.03)
    expected = t * (1 - (1 + 8 / (1 + t.exp())) / 256)
    torch.testing.assert_close(r, expected, rtol=1e-12, atol=0)
    for step, share in ((0, 1 / 2), (99, 1 / 2), (100, 1 / 4), (250, 1 / 8)):
        t, r = ECTPairs(q=2.0, stage_steps=100).sample(1000, 1, draw=step)
        expected = (t * (1 - share * (1 + 8 / (1 + t.exp())))).clamp_min(0)
        torch.testing.assert_close(r, expected, rtol=1e-12, atol=1e-15)
        assert bool((r == 0).any()) == (share > 1 / 8)


@pytest.mark.parametrize(("freedom", "scale", "mean"), [(0.01, 0.2, 0.0), (2.0, 1.5, 0.7)])
def test_truncated_levels_are_a_students(freedom: float, scale: float, mean: float) -> None:
    """Their distribution function by quadrature of the density of ln t."""
    times = TruncatedPairs(freedom=freedom, scale=scale, mean=mean, share=0.0)

    def density(y: float) -> float:
        return (1 + ((y - mean) / scale) ** 2 / freedom) ** (-(freedom + 1) / 2)

    def mass(low: float, high: float) -> float:
        cuts = sorted({low, high, *(m for m in (0.01, 0.05, 0.3, mean) if low < m < high)})
        return sum(
            integrate.quad(density, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in pairwise(cuts)
        )

    end = math.log(80.0)
    for u in (0.01, 0.3, 0.6, 0.97):
        y = math.log(float(times.levels(torch.tensor([u], dtype=F64))[0]))
        assert mass(0.0, y) / mass(0.0, end) == pytest.approx(u, rel=1e-5)


def test_every_fourth_truncated_sample_stands_at_the_boundary() -> None:
    times = TruncatedPairs(start=2.0)
    t, r = times.sample(1000, 3)
    edge = t == 2.0 + 1e-8
    assert edge.nonzero()[:, 0].tolist() == list(range(3, 1000, 4))
    assert bool((r[edge] < 2.0).all()) and 2.0 < float(t[~edge].min()) < float(t.max()) < 80.0
    for share, batch in ((0.3, 7), (0.5, 9), (0.0, 5)):
        t, _ = TruncatedPairs(share=share).sample(batch, 3)
        assert int((t == 1.0 + 1e-8).sum()) == int(share * batch)


def test_pairs_of_a_chain() -> None:
    """t = 19, 39, ..., 999 and 20 below, or 0, as levels of the chain."""
    chain = DDPM(schedule="scaled_linear")
    t, s = ChainPairs(chain).sample(5000, 3)
    places = torch.arange(19, 1000, 20)
    assert torch.equal(t.unique(), chain.sigmas[places])
    k = torch.searchsorted(chain.sigmas[places], t)
    torch.testing.assert_close(s, chain.sigmas[(places[k] - 20).clamp_min(0)], rtol=1e-12, atol=0)
    assert ChainPairs(chain, 25).skip == 40


def test_annealed_pairs() -> None:
    times = AnnealedPairs(100, 64, 1280)
    for step, n in ((0, 64), (50, round(math.sqrt(64 * 1280))), (100, 1280), (200, 1280)):
        assert times.count(step) == n
        t, s = times.sample(3000, 3, draw=step)
        torch.testing.assert_close((t - s) * n, torch.ones_like(t), rtol=1e-10, atol=0)
        torch.testing.assert_close(t * n, (t * n).round(), rtol=1e-12, atol=0)
    assert float(s.min()) == 0.0 or n > 300
    t, _ = AnnealedPairs(largest=0.99).sample(3000, 3)
    assert float(t.max()) <= 0.99


BAD = [
    (lambda: DoublingPairs(0), ValueError, "total"),
    (lambda: DoublingPairs(10, 5, 2), ValueError, "s1 must not be below s0"),
    (lambda: DoublingPairs(std=0.0), ValueError, "std must be positive"),
    (lambda: ECTPairs(q=1.0), ValueError, "1 must be below q"),
    (lambda: ECTPairs(stage_steps=0), ValueError, "stage_steps"),
    (lambda: TruncatedPairs(start=90.0), ValueError, "start must be below sigma_max"),
    (lambda: TruncatedPairs(freedom=0.0), ValueError, "freedom must be positive"),
    (lambda: ChainPairs("ddpm"), TypeError, "process must be a DDPM"),
    (lambda: ChainPairs(count=1000), ValueError, "count must be below the steps"),
    (lambda: AnnealedPairs(least=9, most=8), ValueError, "most must not be below least"),
    (lambda: AnnealedPairs(largest=1.5), ValueError, "largest"),
]


@pytest.mark.parametrize(("make", "error", "text"), BAD, ids=[f"{row[2]} {k}" for k, row in enumerate(BAD)])
def test_bad_input(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
