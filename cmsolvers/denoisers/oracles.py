"""Exact denoisers, scores and densities: the problems on which the library is proven.

Each takes x of shape [B, ...] in Karras coordinates and sigma as a number or a tensor [] or [B],
works in float64 or float32 (half precision is computed in float32), and is differentiable in x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check

Data: TypeAlias = Tensor | Sequence[float] | Sequence[Sequence[float]] | float


def _column(name: str, value: float | Tensor, x: Tensor, *, zero: bool = True) -> Tensor:
    """A level as [B, 1] or [1, 1], in the dtype of the computation."""
    level = check.level(name, value, x, zero=zero)
    if not isinstance(level, Tensor):
        level = torch.full((1,), level, dtype=torch.float64, device=x.device)
    return level.to(_work(x)).reshape(-1, 1)


def _work(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _flat(x: Tensor) -> Tensor:
    """[B, d] in the dtype of the computation; d is 1 for x of shape [B]."""
    return check.state("x", x).to(_work(x)).reshape(x.shape[0], math.prod(x.shape[1:]))


def _points(name: str, value: Data) -> Tensor:
    sequence = isinstance(value, (list, tuple, int, float))
    points = torch.as_tensor(value, dtype=torch.float64 if sequence else None)
    if not points.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating; got {points.dtype}")
    if points.ndim == 0 or points.shape[0] == 0:
        raise ValueError(f"{name} must hold at least one point; got shape {list(points.shape)}")
    return points.detach().to(torch.float64)


class Oracle(ABC):
    """What every oracle has; the parts below see x as [B, d] and sigma as [B, 1] or [1, 1]."""

    #: Whether the data itself (sigma = 0) has a density and a score.
    smooth = True

    @abstractmethod
    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x]."""

    @abstractmethod
    def _score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Gradient of the log density."""

    @abstractmethod
    def _log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log density, shape [B]."""

    @abstractmethod
    def _size(self) -> int | None:
        """Elements per sample; None is any number."""

    def denoiser(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x], the exact denoiser.

        Args:
            x: [B, ...] in Karras coordinates.
            sigma: not negative; a number or a tensor of shape [] or [B] on the device of x.

        Returns:
            Tensor like x.

        Raises:
            TypeError: x or sigma of the wrong kind.
            ValueError: wrong shapes, a negative level, x of another size than the data.
        """
        return self._mean(self._flat(x), _column("sigma", sigma, x)).reshape(x.shape).to(x.dtype)

    __call__ = denoiser

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density at level sigma.

        Args:
            x: [B, ...] in Karras coordinates.
            sigma: a number or a tensor of shape [] or [B] on the device of x; not negative, and
                positive where the data has no density.

        Returns:
            Tensor like x.

        Raises:
            TypeError: x or sigma of the wrong kind.
            ValueError: wrong shapes, a level out of range, x of another size than the data.
        """
        flat, level = self._flat(x), _column("sigma", sigma, x, zero=self.smooth)
        return self._score(flat, level).reshape(x.shape).to(x.dtype)

    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Log density of x at level sigma.

        Args:
            x: [B, ...] in Karras coordinates.
            sigma: a number or a tensor of shape [] or [B] on the device of x; not negative, and
                positive where the data has no density.

        Returns:
            Tensor [B], in nats.

        Raises:
            TypeError: x or sigma of the wrong kind.
            ValueError: wrong shapes, a level out of range, x of another size than the data.
        """
        flat, level = self._flat(x), _column("sigma", sigma, x, zero=self.smooth)
        return self._log_density(flat, level).to(x.dtype)

    def _flat(self, x: Tensor) -> Tensor:
        flat, size = _flat(x), self._size()
        if size is not None and flat.shape[1] != size:
            raise ValueError(f"x must have {size} elements per sample; got shape {list(x.shape)}")
        return flat


class Gaussian(Oracle):
    """Data from N(mean, std^2 I).

    Args:
        std: positive number.
        mean: a number, or a tensor with as many elements as a sample.

    Raises:
        TypeError: an integer mean.
        ValueError: std not positive.
    """

    def __init__(self, std: float, mean: float | Tensor = 0.0) -> None:
        self.std = check.positive("std", std)
        if not isinstance(mean, Tensor):
            mean = torch.tensor([check.finite("mean", mean)], dtype=torch.float64)
        self.mean = _points("mean", mean.reshape(1, -1))

    def _size(self) -> int | None:
        return None if self.mean.shape[1] == 1 else self.mean.shape[1]

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        mean = self.mean.to(x)
        return mean + self.std**2 / (self.std**2 + sigma**2) * (x - mean)

    def _score(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (self.mean.to(x) - x) / (self.std**2 + sigma**2)

    def _log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = (self.std**2 + sigma**2)[:, 0]
        energy = (x - self.mean.to(x)).square().sum(1) / variance
        return -0.5 * (energy + x.shape[1] * torch.log(2 * math.pi * variance))

    def consistency(
        self, x: Tensor, sigma: float | Tensor, sigma_min: float | Tensor = 0.002
    ) -> Tensor:
        """The exact consistency function: where the ODE takes x from sigma to sigma_min.

        It is mean + (x - mean) sqrt((std^2 + sigma_min^2) / (std^2 + sigma^2)).

        Args:
            x: [B, ...] in Karras coordinates.
            sigma: not negative; a number or a tensor of shape [] or [B] on the device of x.
            sigma_min: the same, the level to arrive at; 0 is the data itself.

        Returns:
            Tensor like x.

        Raises:
            TypeError: x or a level of the wrong kind.
            ValueError: wrong shapes, a negative level, x of another size than the data.
        """
        flat = self._flat(x)
        level, end = _column("sigma", sigma, x), _column("sigma_min", sigma_min, x)
        mean = self.mean.to(flat)
        ratio = torch.sqrt((self.std**2 + end**2) / (self.std**2 + level**2))
        moved = torch.where(ratio == 1, flat, mean + ratio * (flat - mean))
        return moved.reshape(x.shape).to(x.dtype)


class GaussianMixture(Oracle):
    """Data from sum_k weights[k] N(means[k], stds[k]^2 I).

    Args:
        means: [K, ...], the trailing shape of x ([K] for x of shape [B] or [B, 1]).
        stds: positive; a number or [K].
        weights: positive, [K], normalised here; None is uniform.

    Raises:
        TypeError: integer tensors.
        ValueError: lengths that differ, stds or weights that are not positive.
    """

    def __init__(self, means: Data, stds: Data, weights: Data | None = None) -> None:
        means = _points("means", means)
        k = means.shape[0]
        self.means: Tensor = means.reshape(k, -1)
        stds = torch.as_tensor(stds, dtype=torch.float64)
        weights = torch.as_tensor([1.0] * k if weights is None else weights, dtype=torch.float64)
        stds = stds.expand(k) if stds.ndim == 0 else stds
        for name, value in (("stds", stds), ("weights", weights)):
            if list(value.shape) != [k]:
                raise ValueError(f"{name} must have shape [K] = [{k}]; got {list(value.shape)}")
            if not bool(((value > 0) & value.isfinite()).all()):
                raise ValueError(f"{name} must be positive and finite; got {value.tolist()}")
        self.stds: Tensor = stds.to(means.device)
        self.weights: Tensor = (weights / weights.sum()).to(means.device)

    def _size(self) -> int:
        return self.means.shape[1]

    def _terms(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log joint [B, K], x - mean [B, K, d], std^2 [K], marginal variances [B, K]."""
        means, stds, weights = (v.to(x) for v in (self.means, self.stds, self.weights))
        variances = stds**2 + sigma**2
        apart = x[:, None] - means
        volume = x.shape[1] * torch.log(2 * math.pi * variances)
        normal = apart.square().sum(-1) / variances + volume
        return weights.log() - 0.5 * normal, apart, stds**2, variances

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        joint, apart, own, variances = self._terms(x, sigma)
        share = torch.softmax(joint, dim=1)
        shrunk: Tensor = self.means.to(x) + (own / variances)[..., None] * apart
        return (share[..., None] * shrunk).sum(1)

    def _score(self, x: Tensor, sigma: Tensor) -> Tensor:
        joint, apart, _, variances = self._terms(x, sigma)
        share = torch.softmax(joint, dim=1) / variances
        return -(share[..., None] * apart).sum(1)

    def _log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.logsumexp(self._terms(x, sigma)[0], dim=1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of the data, float64 [n, d]."""
        pick = torch.multinomial(self.weights, check.count("n", n), True, generator=generator)
        unit = torch.randn(n, self._size(), dtype=torch.float64, generator=generator)
        return self.means[pick] + self.stds[pick, None] * unit


class DataSet(Oracle):
    """A finite data set, each point equally likely: the empirical distribution.

    Args:
        points: [N, ...], the trailing shape of x.
        chunk: how many points at once; None bounds the working memory to about 2^24 elements.

    At sigma = 0 the denoiser is the nearest point; score and density need sigma > 0.

    Raises:
        TypeError: integer points.
        ValueError: no points, a chunk below 1.

    Source: Karras et al. (2022), appendix B.3.
    """

    smooth = False

    def __init__(self, points: Data, *, chunk: int | None = None) -> None:
        points = _points("points", points)
        self.points: Tensor = points.reshape(points.shape[0], -1)
        self.chunk = None if chunk is None else check.count("chunk", chunk)

    def _size(self) -> int:
        return self.points.shape[1]

    def _pieces(self, x: Tensor) -> list[Tensor]:
        room = max(1, 2**24 // max(1, x.numel())) if self.chunk is None else self.chunk
        return [piece.to(x) for piece in torch.split(self.points, room)]

    def _accumulate(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Running softmax over the data: least squared distance, sum of exponentials, mean."""
        nearest = x.new_full((x.shape[0], 1), math.inf)
        total, weighted = torch.zeros_like(nearest), torch.zeros_like(x)
        scale = (2 * sigma**2).clamp_min(torch.finfo(x.dtype).tiny)
        for piece in self._pieces(x):
            # (x - p)^2 as it is: expanding the square loses all digits at small sigma.
            far = (x[:, None] - piece).square().sum(-1)
            nearer = torch.minimum(nearest, far.amin(1, keepdim=True)).detach()
            share = torch.exp((nearer - far) / scale)
            fade = torch.exp((nearer - nearest) / scale)
            total = total * fade + share.sum(1, keepdim=True)
            weighted = weighted * fade + share @ piece
            nearest = nearer
        return nearest, total, weighted

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        _, total, weighted = self._accumulate(x, sigma)
        return weighted / total

    def _score(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (self._mean(x, sigma) - x) / sigma**2

    def _log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        nearest, total, _ = self._accumulate(x, sigma)
        n, size = self.points.shape
        volume = math.log(n) + 0.5 * size * torch.log(2 * math.pi * sigma[:, 0] ** 2)
        return (total.log() - nearest / (2 * sigma**2))[:, 0] - volume
