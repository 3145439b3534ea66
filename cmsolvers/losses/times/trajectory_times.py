"""Distributions of pairs of times for self-distillation, trajectories and terminal velocities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.times.distribution import Distribution, Pair
from cmsolvers.losses.times.elementwise import logistic, power
from cmsolvers.processes.coordinates import FLOW, KARRAS


@dataclass(frozen=True)
class UniformTimes(Distribution[Pair]):
    """(t, s) uniform on the triangle 0 < s < t < 1 of flow coordinates, or s = t ~ U(0, 1).

    Args:
        equal: the share of samples with s = t, in [0, 1].

    Raises:
        ValueError: equal outside [0, 1].

    Source: Boffi et al., "How to Build a Consistency Model: Learning Flow Maps via
        Self-Distillation" (2025), algorithm 1.
    """

    equal: float = 0.75
    coordinates = FLOW
    numbers = 3

    def __post_init__(self) -> None:
        check.within("equal", self.equal, 0.0, 1.0)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        other = torch.where(u[:, 2] < self.equal, u[:, 0], u[:, 1])
        return torch.maximum(u[:, 0], other), torch.minimum(u[:, 0], other)


@dataclass(frozen=True)
class GapPairs(Distribution[Pair]):
    """s and t = s + gap of flow coordinates, both logit-normal, s given that t is at most 1.

    Args:
        mean: of logit s.
        std: of logit s, positive.
        gap_mean: of the logit of t - s.
        gap_std: likewise, positive.

    Raises:
        ValueError: a deviation that is not positive.

    Source: Zhou et al., "Terminal Velocity Matching" (2025), published code.
    """

    mean: float = -0.4
    std: float = 1.0
    gap_mean: float = -0.8
    gap_std: float = 1.0
    coordinates = FLOW
    numbers = 2

    def __post_init__(self) -> None:
        check.finite("mean", self.mean)
        check.positive("std", self.std)
        check.finite("gap_mean", self.gap_mean)
        check.positive("gap_std", self.gap_std)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        logit = self.gap_mean + self.gap_std * torch.special.ndtri(u[:, 0])
        gap = logistic(logit)
        below = torch.special.ndtr((-logit - self.mean) / self.std)  # of s < 1 - gap
        s = logistic(self.mean + self.std * torch.special.ndtri(u[:, 1] * below))
        return (s + gap).clamp(max=1.0), s


@dataclass(frozen=True)
class RhoPairs(Distribution[Pair]):
    """sigma^(1 / rho) uniform: t in [sigma_min, sigma_max], s in (0, t).

    The continuous form of two levels of a Karras schedule.

    Args:
        sigma_min: the smallest t, positive.
        sigma_max: the largest, above it.
        rho: positive.

    Raises:
        ValueError: a number that is not positive, sigma_min not below sigma_max.

    Source: Kim et al., "Consistency Trajectory Models" (2024), algorithm 2, whose levels are those
        of Karras et al. (2022), eq. 5.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    coordinates = KARRAS
    numbers = 2

    def __post_init__(self) -> None:
        check.sigma_range(self.sigma_min, self.sigma_max)
        check.positive("rho", self.rho)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        root = low + u[:, 0] * (high - low)
        return power(root, self.rho), power(u[:, 1] * root, self.rho)
