"""Levels of a sample are functions of key, step and sample: to the bit, in batches of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import cmsolvers.losses as losses
from cmsolvers.losses.times.continuous_times import Intervals, PowerLaw
from cmsolvers.losses.times.distribution import Distribution
from cmsolvers.schedules import karras_sigmas

GRID = karras_sigmas(18, append_zero=False)
MOST = 67
TIMES: list[Distribution[Any]] = [
    losses.AnglePairs(4),
    losses.AnnealedPairs(total=100),
    losses.ChainPairs(),
    losses.DoublingPairs(total=100),
    losses.ECTPairs(q=2.0, stage_steps=3),
    losses.GapPairs(),
    Intervals(),
    losses.LogNormal(),
    losses.LogNormalPairs(GRID),
    losses.LogitNormal(),
    losses.LogitNormalEnds(),
    losses.LogitNormalPairs(),
    PowerLaw(),
    losses.RhoPairs(),
    losses.SquareRootPairs(total=100),
    losses.TruncatedPairs(),
    losses.UShaped(),
    losses.Uniform(),
    losses.UniformPairs(GRID),
    losses.UniformTimes(),
]


def sizes_that_differ(times: Distribution[Any]) -> list[int]:
    """Batch sizes whose levels are not the first ones of a larger batch."""

    def drawn(size: int) -> Tensor:
        found = times.sample(size, 3, draw=5)
        return torch.stack(found if isinstance(found, tuple) else (found,))

    whole = drawn(MOST)
    return [size for size in range(MOST) if not torch.equal(drawn(size), whole[:, :size])]


@pytest.mark.parametrize("times", TIMES, ids=lambda times: type(times).__name__)
def test_levels_do_not_depend_on_the_size_of_the_batch(times: Distribution[Any]) -> None:
    assert sizes_that_differ(times) == []


@pytest.mark.parametrize("quantile", [losses.LogNormalQuantile(), losses.LogitNormalQuantile()])
def test_further_levels_do_not_depend_on_the_size_of_the_batch(quantile: Any) -> None:
    u = (torch.arange(MOST, dtype=torch.float64) * 0.377 + 0.01) % 1.0
    whole = quantile(u)
    assert all(torch.equal(quantile(u[:size]), whole[:size]) for size in range(MOST))


def test_levels_that_know_their_batch_are_found() -> None:
    @dataclass(frozen=True)
    class Ranked(Distribution[Tensor]):
        """The rank of a sample within its batch."""

        def quantiles(self, u: Tensor, step: int | Tensor) -> Tensor:
            return (u[:, 0].argsort().argsort() + 0.5) / len(u)

    assert len(sizes_that_differ(Ranked())) == MOST - 1
