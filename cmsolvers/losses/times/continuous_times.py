"""Levels of continuous losses: a power law of Karras levels, intervals of a flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.times.distribution import Distribution, Pair
from cmsolvers.losses.times.elementwise import logistic, power
from cmsolvers.processes.coordinates import FLOW


@dataclass(frozen=True)
class PowerLaw(Distribution[Tensor]):
    """sigma^(1/rho) uniform between those of sigma_min and sigma_max: a Karras grid without gaps.

    Raises:
        ValueError: numbers that are not positive, sigma_min not below sigma_max.

    Source: Song et al., "Consistency Models" (2023), theorem 5 and appendix C, u uniform.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check.sigma_range(self.sigma_min, self.sigma_max)
        check.positive("rho", self.rho)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Tensor:
        u = u[:, 0]
        low, high = self.sigma_min ** (1.0 / self.rho), self.sigma_max ** (1.0 / self.rho)
        return power(low + u * (high - low), self.rho)


@dataclass(frozen=True)
class Intervals(Distribution[Pair]):
    """t - s with logit N(mean, std^2), then s uniform in [0, 1 - (t - s)]; in flow coordinates.

    Raises:
        ValueError: std is not positive.

    Source: Sabour et al., "Align Your Flow" (2025), appendix, for mean and std. That s is uniform
        is unconfirmed: one independent implementation orders two times of this logit-normal
        instead, `LogitNormalPairs(mean=-0.8, equal=0.0)`.
    """

    mean: float = -0.8
    std: float = 1.0
    coordinates = FLOW
    numbers = 2

    def __post_init__(self) -> None:
        check.finite("mean", self.mean)
        check.positive("std", self.std)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        length = logistic(self.mean + self.std * torch.special.ndtri(u[:, 0]))
        s = u[:, 1] * (1.0 - length)
        return s + length, s
