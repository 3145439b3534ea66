"""Noise levels of a training step; sample i of step k gets the same level in any batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.losses.times.distribution import Distribution, Pair, device_of
from cmsolvers.losses.times.elementwise import logistic
from cmsolvers.processes.coordinates import FLOW


@dataclass(frozen=True)
class LogNormal(Distribution[Tensor]):
    """ln sigma ~ N(mean, std^2), clipped to [sigma_min, sigma_max]: for denoising score matching.

    Raises:
        ValueError: std or a bound that is not positive, sigma_min not below sigma_max.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
        (2022), section 5.
    """

    mean: float = -1.2
    std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check.finite("mean", self.mean)
        check.positive("std", self.std)
        check.sigma_range(self.sigma_min, self.sigma_max)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Tensor:
        return self._of(torch.special.ndtri(u[:, 0]))

    def sample(
        self,
        batch: int,
        seed: noise.SeedLike,
        *,
        draw: int = 0,
        device: torch.device | None = None,
    ) -> Tensor:
        """As any `Distribution`, of the normals of the noise contract themselves."""
        z = noise.normal(
            (batch, 1), seed, stream=noise.LEVELS, draw=draw, device=device or device_of(seed)
        )
        return self._of(z[:, 0].double())

    def _of(self, z: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * z).clamp(self.sigma_min, self.sigma_max)


@dataclass(frozen=True)
class UniformPairs(Distribution[Pair]):
    """Adjacent pairs of a grid, each equally likely: the choice of the first consistency models.

    Args:
        sigmas: strictly descending, positive, at least 2 levels (`karras_sigmas(n,
            append_zero=False)`).

    Raises:
        TypeError: sigmas of the wrong kind.
        ValueError: not descending, a level that is not positive, fewer than two.
    """

    sigmas: Tensor | Sequence[float]
    _grid: Tensor = field(init=False, repr=False, compare=False)
    _cumulative: Tensor = field(init=False, repr=False, compare=False)
    _held: dict[torch.device, tuple[Tensor, Tensor]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    reaches_zero = False

    def __post_init__(self) -> None:
        grid = check.sigmas("sigmas", self.sigmas)
        if grid[-1] <= 0:
            raise ValueError("sigmas must be positive here, without the final 0; got 0 at the end")
        object.__setattr__(self, "_grid", torch.tensor(grid, dtype=torch.float64))
        object.__setattr__(self, "sigmas", self._grid)
        share = self.probabilities()
        object.__setattr__(self, "_cumulative", torch.cumsum(share, 0)[:-1])

    def probabilities(self) -> Tensor:
        """Of each pair (sigmas[i], sigmas[i + 1]), float64 [N - 1], summing to 1."""
        n = len(self._grid) - 1
        return torch.full((n,), 1.0 / n, dtype=torch.float64)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The grid and the cumulative shares on a device, copied there once."""
        held = self._held.get(device)
        if held is None:
            held = self._held[device] = (self._grid.to(device), self._cumulative.to(device))
        return held

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        grid, cumulative = self._on(u.device)
        index = torch.searchsorted(cumulative, u[:, 0].contiguous(), right=True)
        return grid[index], grid[index + 1]


@dataclass(frozen=True)
class LogNormalPairs(UniformPairs):
    """Adjacent pairs of a grid by a lognormal: p_i ~ erf(u(sigma_i)) - erf(u(sigma_{i+1})).

    u(s) = (ln s - mean) / (sqrt(2) std): middle levels, where the images are decided, come up most.

    Raises:
        TypeError, ValueError: as `UniformPairs`; std not positive.

    Source: Song & Dhariwal, "Improved Techniques for Training Consistency Models" (2023), section
        3.5.
    """

    mean: float = -1.1
    std: float = 2.0

    def probabilities(self) -> Tensor:
        """Of each pair (sigmas[i], sigmas[i + 1]), float64 [N - 1], summing to 1."""
        scale = math.sqrt(2.0) * check.positive("std", self.std)
        edges = torch.erf((self._grid.log() - check.finite("mean", self.mean)) / scale)
        share = edges[:-1] - edges[1:]
        return share / share.sum()


@dataclass(frozen=True)
class LogitNormal(Distribution[Tensor]):
    """logit t ~ N(mean, std^2), t in (0, 1) of flow coordinates.

    Raises:
        ValueError: std is not positive.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis"
        (2024), eq. 19.
    """

    mean: float = 0.0
    std: float = 1.0
    coordinates = FLOW

    def __post_init__(self) -> None:
        check.finite("mean", self.mean)
        check.positive("std", self.std)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Tensor:
        return logistic(self.mean + self.std * torch.special.ndtri(u[:, 0]))


@dataclass(frozen=True)
class LogitNormalPairs(Distribution[Pair]):
    """Two such times, t the larger and s the smaller, of which a share has s = t.

    Args:
        mean: of logit t.
        std: of logit t.
        equal: probability of s = t, in [0, 1].
        end_mean: of the logit of the second time; None is `mean`.
        end_std: likewise; None is `std`.

    Raises:
        ValueError: std or end_std not positive, equal outside [0, 1].

    Source: Geng et al., "Mean Flows for One-step Generative Modeling" (2025), section 4.3.
    """

    mean: float = -0.4
    std: float = 1.0
    equal: float = 0.75
    end_mean: float | None = None
    end_std: float | None = None
    coordinates = FLOW
    numbers = 3

    def __post_init__(self) -> None:
        check.finite("mean", self.mean)
        check.positive("std", self.std)
        check.within("equal", self.equal, 0.0, 1.0)
        if self.end_mean is not None:
            check.finite("end_mean", self.end_mean)
        if self.end_std is not None:
            check.positive("end_std", self.end_std)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        first, second = self._times(u)
        return torch.maximum(first, second), torch.minimum(first, second)

    def _times(self, u: Tensor) -> Pair:
        """Both times in the order in which they are drawn, [B]; equal for a share."""
        z = torch.special.ndtri(u[:, :2])
        mean = self.mean if self.end_mean is None else self.end_mean
        std = self.std if self.end_std is None else self.end_std
        first = logistic(self.mean + self.std * z[:, 0])
        second = logistic(mean + std * z[:, 1])
        return first, torch.where(u[:, 2] < self.equal, first, second)
