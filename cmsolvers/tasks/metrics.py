"""Quality of samples: Frechet and sliced Wasserstein distance, nearest data, confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features.

    |m_a - m_b|^2 + tr A + tr B - 2 tr (A B)^(1/2), with the unbiased covariances A, B. Computed in
    float64 from the triangular factors R of the centred features: tr (A B)^(1/2) is the sum of the
    singular values of R_a R_b^T, so no covariance is squared or rooted and rank-deficient features
    do no harm.

    Args:
        a: features [n, d], n >= 2.
        b: features [m, d], m >= 2.

    Returns:
        The distance, not negative (rounding aside it is 0 for equal sets).

    Raises:
        TypeError: no floating tensors.
        ValueError: wrong shapes, fewer than two rows, values that are not finite.

    Source: Dowson & Landau (1982); Heusel et al., "GANs Trained by a Two Time-Scale Update Rule"
        (2017).
    """
    first, second = _two_sets(a, b)
    return gaussian_fit(first).distance(gaussian_fit(second))


@dataclass(frozen=True)
class GaussianFit:
    """Mean and covariance of a set of features, for several Frechet distances to it.

    Attributes:
        mean: float64 [d].
        factor: float64 [min(n, d), d], R with R^T R the unbiased covariance.
    """

    mean: Tensor
    factor: Tensor

    def distance(self, other: GaussianFit) -> float:
        """The Frechet distance to another one; see `frechet_distance`."""
        overlap = torch.linalg.svdvals(self.factor @ other.factor.T).sum()
        spread = self.factor.square().sum() + other.factor.square().sum() - 2 * overlap
        return max(0.0, float((self.mean - other.mean).square().sum() + spread))


def gaussian_fit(features: Tensor) -> GaussianFit:
    """The Gaussian of features [n, d], n >= 2.

    Raises:
        TypeError: no floating tensor.
        ValueError: another shape, fewer than two rows, values that are not finite.
    """
    value = _features("features", features)
    mean = value.mean(0)
    centred = (value - mean) / (value.shape[0] - 1) ** 0.5
    return GaussianFit(mean, torch.linalg.qr(centred, mode="r")[1])


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 128, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance between two sets of as many points.

    The root of the mean over random directions u on the unit sphere of W_2^2 between the projected
    sets, which in one dimension pairs the sorted values. A shift by m gives |m| / sqrt(d) on
    average, so the value is per coordinate. Computed in float64.

    Args:
        a: points [n, d], n >= 2.
        b: points [n, d].
        directions: how many; with d = 1 all are the same.
        seed: of the directions; the same seed gives the same ones for any points.

    Returns:
        The distance, 0 for equal sets. Two sets of n draws from one distribution are of the order
        of n^(-1/2) apart.

    Raises:
        TypeError: no floating tensors.
        ValueError: wrong shapes, sets of different sizes, values that are not finite.

    Source: Rabin et al., "Wasserstein Barycenter and Its Application to Texture Mixing" (2012).
    """
    first, second = _two_sets(a, b)
    if len(first) != len(second):
        raise ValueError(f"a and b must have as many points; got {len(first)} and {len(second)}")
    shape = (check.count("directions", directions), first.shape[1])
    lines = noise.normal(shape, seed, stream=noise.OTHER, dtype=torch.float64)
    lines = lines / lines.norm(dim=1, keepdim=True)
    # NumPy sorts on one core about ten times as fast as torch does.
    one, two = (np.sort((lines @ x.cpu().T).numpy(), axis=1) for x in (first, second))
    return float(np.sqrt(np.mean((one - two) ** 2)))


def nearest_distance(samples: Tensor, data: Tensor, *, chunk: int = 256) -> Tensor:
    """Euclidean distance from each sample to the nearest data; small values show memorisation.

    Args:
        samples: [n, ...].
        data: [m, ...], m >= 1, of the same trailing shape.
        chunk: samples at once.

    Returns:
        float64 [n].

    Raises:
        TypeError: no floating tensors.
        ValueError: shapes that do not fit, no data.
    """
    check.state("samples", samples)
    check.state("data", data)
    if samples.shape[1:] != data.shape[1:] or data.shape[0] == 0:
        raise ValueError(
            f"data must hold points of shape {list(samples.shape[1:])}; "
            f"got shape {list(data.shape)}"
        )
    size = math.prod(data.shape[1:])
    points = data.double().reshape(-1, size)
    parts = [
        # Without the matrix-product shortcut, which loses the digits of small distances.
        torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        for part in torch.split(samples.double().reshape(-1, size), check.count("chunk", chunk))
    ]
    return torch.cat(parts) if parts else samples.new_zeros(0, dtype=torch.float64)


def _two_sets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, checked: [n, d] and [m, d]."""
    sets = [_features(name, value) for name, value in (("a", a), ("b", b))]
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must have as many features; got {a.shape[1]} and {b.shape[1]}")
    return sets[0], sets[1]


def _features(name: str, value: Tensor) -> Tensor:
    """Features in float64, checked: [n >= 2, d]."""
    check.tensor(name, value)
    if value.ndim != 2 or value.shape[0] < 2:
        raise ValueError(f"{name} must be features [n >= 2, d]; got shape {list(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} must be finite; got nan or inf among its values")
    return value.detach().double()


def confidence(logits: Tensor) -> Tensor:
    """Largest class probability of each sample: logits [n, classes] -> float64 [n]."""
    return torch.softmax(_logits(logits).double(), 1).amax(1)


def class_shares(logits: Tensor) -> Tensor:
    """Share of the samples in each class: logits [n, classes] -> float64 [classes], sum 1."""
    logits = _logits(logits)
    counts = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
    return counts.double() / logits.shape[0]


def _logits(logits: Tensor) -> Tensor:
    check.tensor("logits", logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have shape [n, classes]; got {list(logits.shape)}")
    return logits
