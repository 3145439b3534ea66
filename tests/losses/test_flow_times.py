"""Distributions of times of the flow losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers.losses.times.flow_times import (
    AnglePairs,
    DyadicPairs,
    LogitNormalEnds,
    Uniform,
    UShaped,
)

MANY = 20000


def farthest(sample: Tensor, cumulative: Any) -> float:
    """The Kolmogorov-Smirnov distance of a sample from a distribution."""
    x = sample.sort().values
    place = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    return float((cumulative(x) - place).abs().max())


def normal(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def test_uniform() -> None:
    t = Uniform(0.2, 0.7).sample(MANY, 1)
    assert farthest(t, lambda x: (x - 0.2) / 0.5) < 0.012
    assert t.dtype is torch.float64
    with pytest.raises(ValueError, match="low must be below high"):
        Uniform(0.5, 0.5)
    with pytest.raises(ValueError, match="high"):
        Uniform(0.0, 2.0)


@pytest.mark.parametrize("a", [0.5, 4.0, 12.0])
def test_u_shaped(a: float) -> None:
    t = UShaped(a).sample(MANY, 1)
    half = math.sinh(a / 2)
    assert farthest(t, lambda x: 0.5 + torch.sinh(a * (x - 0.5)) / (2 * half)) < 0.012
    assert farthest(t, lambda x: x) > (0.001 if a < 1 else 0.05)


def test_logit_normal_ends() -> None:
    times = LogitNormalEnds()
    t, s = times.sample(MANY, 1)
    assert bool((s <= t).all())
    assert farthest(torch.logit(t), lambda x: normal((x + 0.6) / 1.6)) < 0.012
    # s = t where told, or where s would come above t: logit s - logit t ~ N(-3.4, 2 * 1.6^2).
    above = float(normal(torch.tensor(-3.4 / (1.6 * 2**0.5), dtype=torch.float64)))
    share = 0.25 + 0.75 * above
    assert float((t == s).double().mean()) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_angle_pairs(steps: int) -> None:
    t, s = AnglePairs(steps, sigma_max=math.inf).sample(MANY, 1)
    high, low = torch.atan(t) * 2 / torch.pi * steps, torch.atan(s) * 2 / torch.pi * steps
    torch.testing.assert_close(high, high.round(), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(high - low, torch.ones_like(t), rtol=0.0, atol=1e-9)
    counts = torch.bincount(high.round().long(), minlength=steps + 1)[1:] / MANY
    torch.testing.assert_close(counts, torch.full_like(counts, 1 / steps), rtol=0.0, atol=0.02)
    finite = AnglePairs(steps, sigma_max=80.0).sample(MANY, 1)[0]
    assert float(finite.max()) == pytest.approx(80.0, rel=1e-9)


def test_dyadic_pairs() -> None:
    t, s = DyadicPairs(share=0.5).sample(MANY, 1)
    few = MANY // 2
    size = (t - s)[:few]
    exponent = -torch.log2(size)
    torch.testing.assert_close(exponent, exponent.round(), rtol=0.0, atol=0.0)
    assert exponent.unique().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    counts = torch.bincount(exponent.long()) / few
    torch.testing.assert_close(counts, torch.full_like(counts, 1 / 7), rtol=0.0, atol=0.02)
    place = t[:few] / size
    torch.testing.assert_close(place, place.round(), rtol=0.0, atol=0.0)
    assert bool((s >= 0).all()) and bool((t <= 1).all())
    rest = t[few:] * 128
    assert bool((t[few:] == s[few:]).all()) and bool((rest == rest.round()).all())
    assert float(rest.min()) == 1.0 and float(rest.max()) == 128.0
    with pytest.raises(ValueError, match="power of 2"):
        DyadicPairs(100)
    with pytest.raises(ValueError, match="share"):
        DyadicPairs(share=1.5)
