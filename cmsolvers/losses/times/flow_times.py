"""Distributions of times for losses of flows and average velocities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.times.basic_times import LogitNormalPairs
from cmsolvers.losses.times.distribution import Distribution, Pair
from cmsolvers.losses.times.elementwise import exp2
from cmsolvers.processes.coordinates import FLOW, KARRAS


@dataclass(frozen=True)
class Uniform(Distribution[Tensor]):
    """t ~ U(low, high) in flow coordinates.

    Raises:
        ValueError: bounds outside [0, 1] or in the wrong order.
    """

    low: float = 0.0
    high: float = 1.0
    coordinates = FLOW

    def __post_init__(self) -> None:
        check.within("low", self.low, 0.0, 1.0)
        check.within("high", self.high, 0.0, 1.0)
        check.below("low", self.low, "high", self.high)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u[:, 0]


@dataclass(frozen=True)
class UShaped(Distribution[Tensor]):
    """Density of t proportional to cosh(a (t - 1/2)) in flow coordinates: more at both ends.

    The ends of straightened trajectories are the hardest to learn.

    Args:
        steepness: a, positive.

    Raises:
        ValueError: steepness is not positive.

    Source: Lee, Lin & Fanti, "Improving the Training of Rectified Flows" (2024), section 4.1: a
        U-shaped density e^(a u) + e^(-a u) with a = 4, centred here.
    """

    steepness: float = 4.0
    coordinates = FLOW

    def __post_init__(self) -> None:
        check.positive("steepness", self.steepness)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Tensor:
        u = u[:, 0]
        half = self.steepness / 2.0
        return 0.5 + torch.asinh((2.0 * u - 1.0) * math.sinh(half)) / self.steepness


@dataclass(frozen=True)
class LogitNormalEnds(LogitNormalPairs):
    """t and s from two logit-normal distributions; s = t for a share, and wherever s comes above t.

    `LogitNormalPairs` swaps two times that come in the wrong order; here t keeps its own
    distribution, so s = t for more samples than `equal` says.

    Raises:
        ValueError: std or end_std not positive, equal outside [0, 1].

    Source: Geng et al., "Mean Flows for One-step Generative Modeling" (2025), published code for
        CIFAR-10.
    """

    mean: float = -0.6
    std: float = 1.6
    equal: float = 0.25
    end_mean: float | None = -4.0
    end_std: float | None = 1.6

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        t, s = self._times(u)
        return t, torch.minimum(t, s)


@dataclass(frozen=True)
class AnglePairs(Distribution[Pair]):
    """Neighbours of a grid of `steps` equal steps in the angle arctan(sigma / alpha).

    The grid of the cosine schedule: t_i = i / steps of pi / 2, s = t_{i - 1}. With `last` below
    `steps` the number halves as training goes on, from `steps` to `last`, in equal shares of
    `total` training steps.

    Args:
        steps: of the student, at the start.
        last: at the end, `steps` over a power of 2; None is `steps`.
        total: training steps in all; needed where `last` is below `steps`.
        sigma_max: the largest ratio sigma / alpha, e^10 in the paper's code; infinite is pure
            noise, for models that are not in Karras coordinates.

    Raises:
        ValueError: numbers that are not positive, a `last` that halving does not reach.

    Source: Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models" (2022),
        algorithm 2 and appendix D.
    """

    steps: int = 4
    last: int | None = None
    total: int | None = None
    sigma_max: float = math.exp(10.0)
    coordinates = KARRAS

    def __post_init__(self) -> None:
        check.count("steps", self.steps)
        if self.last is not None and check.count("last", self.last) << self.halvings != self.steps:
            raise ValueError(
                f"last must be steps over a power of 2; got {self.last} for {self.steps} steps"
            )
        if self.halvings > 0 and self.total is None:
            raise ValueError("total must be given where the number of steps halves; got None")
        if self.total is not None:
            check.count("total", self.total)
        if self.sigma_max != math.inf:
            check.positive("sigma_max", self.sigma_max)

    @property
    def halvings(self) -> int:
        """How often the number of steps halves."""
        last = self.steps if self.last is None else min(self.last, self.steps)
        return (self.steps // last).bit_length() - 1

    def steps_at(self, step: int | Tensor) -> float | Tensor:
        """The student's number of steps at a training step; a tensor for a tensor."""
        if self.total is None:
            return float(self.steps)
        if isinstance(step, Tensor):
            done = (step * (self.halvings + 1)).div(self.total, rounding_mode="floor")
            fewer: Tensor = self.steps * exp2(-done.clamp(max=self.halvings).double())
            return fewer
        return float(self.steps >> min(step * (self.halvings + 1) // self.total, self.halvings))

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        u = u[:, 0]
        steps = self.steps_at(step)
        index, largest = torch.ceil(u * steps), math.atan(self.sigma_max)
        return (
            torch.tan(index / steps * largest),
            torch.tan((index - 1.0) / steps * largest),
        )


@dataclass(frozen=True)
class DyadicPairs(Distribution[Pair]):
    """Shortcuts: (t, t - d), d = 1, 1/2, ..., 2 / finest, t on the grid of d; the rest s = t.

    The first samples of a batch, a `share` of it, get steps d, all sizes equally likely; the others
    get s = t on the finest grid.

    Args:
        finest: 1 / the smallest step, a power of 2, at least 2.
        share: of the batch, in [0, 1].

    Raises:
        ValueError: finest is no such power, share outside [0, 1].

    Source: Frans et al., "One Step Diffusion via Shortcut Models" (2024), algorithm 1.
    """

    finest: int = 128
    share: float = 0.125
    coordinates = FLOW
    numbers = 2

    def __post_init__(self) -> None:
        count = check.count("finest", self.finest, least=2)
        if count & (count - 1):
            raise ValueError(f"finest must be a power of 2; got {self.finest}")
        check.within("share", self.share, 0.0, 1.0)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        sizes = self.finest.bit_length() - 1
        first = torch.arange(len(u), device=u.device) < int(len(u) * self.share)
        steps = exp2((u[:, 1] * sizes).floor().clamp(max=sizes - 1))
        grid = torch.where(first, steps, float(self.finest))
        t = torch.ceil(u[:, 0] * grid) / grid
        return t, torch.where(first, t - 1.0 / grid, t)
