"""Levels of a sample are functions of key, step and sample: to the bit, in batches of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import cmsolvers.losses as losses
from cmsolvers.losses.times import elementwise
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


MANY = (torch.arange(4099, dtype=torch.float64) * 0.6180339887498949 + 0.01) % 1.0
"""Enough numbers that one in a thousand, computed by other code, shows."""
SIZES = (1, 2, 3, 5, 7, 11)


def parts_that_differ(function: Callable[[Tensor], Tensor], x: Tensor = MANY) -> int:
    """How many of the first numbers have other bits in small tensors than in a large one."""
    whole = function(x)
    return sum(
        int((function(x[k : k + size].clone()) != whole[k : k + size]).sum())
        for size in SIZES
        for k in range(0, 600, size)
    )


def by_sigmoid(z: Tensor) -> Tensor:
    return torch.sigmoid(10.0 * z - 5.0)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda u: elementwise.logistic(10.0 * u - 5.0),
    "power": lambda u: elementwise.power(80.0 * u, 7.0),
    "exp2": lambda u: elementwise.exp2(40.0 * u - 30.0),
    "ECT": lambda u: losses.ECTPairs(q=3.0).lower(10.0 * u),
    "ECT, steps of samples": lambda u: losses.ECTPairs(q=3.0, stage_steps=5).lower(
        10.0 * u, (u * 100.0).long()
    ),
    "truncated": losses.TruncatedPairs().levels,
    "angles": lambda u: losses.AnglePairs(8).quantiles(u[:, None], 0)[0],
    "u-shaped": lambda u: losses.UShaped().quantiles(u[:, None], 0),
    "gaps": lambda u: losses.GapPairs().quantiles(torch.stack((u, 1.0 - u), 1), 0)[0],
    "a chain": lambda u: losses.ChainPairs().quantiles(u[:, None], 0)[0],
    "a power law": lambda u: PowerLaw().quantiles(u[:, None], 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_number_knows_its_place(name: str) -> None:
    assert parts_that_differ(FUNCTIONS[name]) == 0


def test_numbers_that_know_their_place_are_found() -> None:
    """Where this CPU has code for several numbers at once, torch's own functions do."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("one number at a time")
    assert parts_that_differ(by_sigmoid) > 0
    assert parts_that_differ(lambda u: torch.exp2(40.0 * u - 30.0)) > 0


def test_powers_of_two() -> None:
    whole = torch.arange(-1022, 1024, dtype=torch.float64)
    assert elementwise.exp2(whole).tolist() == [2.0**k for k in range(-1022, 1024)]
    x = 60.0 * MANY - 30.0
    expected = torch.tensor([2.0**number for number in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(elementwise.exp2(x), expected, rtol=1e-15, atol=0.0)
    assert 0.0 < float(elementwise.exp2(torch.tensor([-5000.0], dtype=torch.float64))) < 1e-300


@pytest.mark.parametrize("q", [2.0, 3.0, 256.0])
def test_stages_are_the_same_for_a_step_on_a_device(q: float) -> None:
    times = losses.ECTPairs(q=q, stage_steps=10)
    for step in (0, 9, 10, 35, 4000):
        found = times.lower(MANY, torch.tensor([step]))
        assert torch.equal(found, times.lower(MANY, step))
        assert elementwise.exp2(-math.log2(q) * (step // 10 + 1)) == pytest.approx(
            q ** -(step // 10 + 1), rel=1e-13, abs=1e-300
        )


def test_levels_that_know_their_batch_are_found() -> None:
    @dataclass(frozen=True)
    class Ranked(Distribution[Tensor]):
        """The rank of a sample within its batch."""

        def quantiles(self, u: Tensor, step: int | Tensor) -> Tensor:
            return (u[:, 0].argsort().argsort() + 0.5) / len(u)

    assert len(sizes_that_differ(Ranked())) == MOST - 1
