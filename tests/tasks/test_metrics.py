"""Metrics against formulas and independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from cmsolvers import noise
from cmsolvers.tasks import metrics


def features(n: int, d: int, seed: int) -> torch.Tensor:
    z = noise.normal((n, d), seed, dtype=torch.float64)
    mix = noise.normal((d, d), 99, dtype=torch.float64)
    return z @ mix + 0.3 * seed


def test_frechet_distance_against_matrix_square_root():
    a, b = features(500, 6, 1), features(400, 6, 2) * 1.3
    ca, cb = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(ca @ cb).real
    mean = float((a.mean(0) - b.mean(0)).square().sum())
    expected = mean + np.trace(ca + cb - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_scaled_and_shifted_sets():
    a = features(300, 4, 1)
    b = 2 * (a - a.mean(0)) + a.mean(0) + 1
    expected = 4 + float(torch.cov(a.T).trace())
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_deficient_and_badly_scaled_features():
    a = features(10, 30, 1)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    far = torch.cat([a, 1e6 + torch.zeros(10, 1, dtype=torch.float64)], dim=1)
    assert metrics.frechet_distance(far, far) == pytest.approx(0, abs=1e-8)
    assert metrics.frechet_distance(a[:, :0], a[:, :0]) == 0
    flat = torch.zeros(5, 3)
    assert metrics.frechet_distance(flat, flat + 2) == pytest.approx(12)
    # float32 in, float64 inside: a shift of 1e-3 on values near 1e3 is seen.
    big = (1000 + features(2000, 2, 0)).float()
    assert metrics.frechet_distance(big, big + 0.125) == pytest.approx(2 * 0.125**2, rel=1e-4)


def test_sliced_wasserstein_of_a_shift_and_a_scale():
    """|m|^2 / d, and for N(0, I) scaled by c (1 - c)^2, on average over directions."""
    z = noise.normal((4000, 3), 5, dtype=torch.float64)
    shift = torch.tensor([0.3, -0.2, 0.6], dtype=torch.float64)
    expected = float(shift.norm()) / 3**0.5
    found = metrics.sliced_wasserstein(z, z + shift, directions=4000)
    assert found == pytest.approx(expected, rel=0.02)
    assert metrics.sliced_wasserstein(z, 1.5 * z, directions=64) == pytest.approx(0.5, rel=0.05)
    assert metrics.sliced_wasserstein(z, z.flip(0)) == 0.0
    swapped = torch.stack([z[:, 0], z[:, 1], z[:, 1]], 1)  # marginals agree, the whole does not
    assert metrics.sliced_wasserstein(z, swapped) > 0.1


def test_sliced_wasserstein_in_one_dimension_is_the_distance_of_quantiles():
    a, b = features(300, 1, 1), features(300, 1, 2)
    quantiles = np.sort(a.numpy()[:, 0]) - np.sort(b.numpy()[:, 0])
    expected = float(np.sqrt(np.mean(quantiles**2)))
    assert metrics.sliced_wasserstein(a, b, directions=3) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_two_gaussians():
    """Along u it is (u.m)^2 + (s_1(u) - s_2(u))^2, here averaged over the same directions."""
    n, scales = 100_000, torch.tensor([1.0, 0.2], dtype=torch.float64)
    a = noise.normal((n, 2), 1, dtype=torch.float64)
    b = scales * noise.normal((n, 2), 2, dtype=torch.float64) + 0.5
    u = noise.normal((64, 2), 9, stream=noise.OTHER, dtype=torch.float64)
    u = u / u.norm(dim=1, keepdim=True)
    along = (0.5 * u.sum(1)) ** 2 + (1 - (u * scales).norm(dim=1)) ** 2
    found = metrics.sliced_wasserstein(a, b, directions=64, seed=9)
    assert found == pytest.approx(float(along.mean().sqrt()), rel=0.01)


def test_nearest_distance():
    data = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    samples = torch.tensor([[0.0, 1.0], [3.0, 4.0], [3.0, 4.000001]])
    near = metrics.nearest_distance(samples, data, chunk=2)
    assert near.dtype is torch.float64
    assert near[:2].tolist() == [1.0, 0.0]
    assert float(near[2]) == pytest.approx(float(samples[2, 1] - 4), rel=1e-6)


def test_confidence_and_shares():
    logits = torch.tensor([[0.0, math.log(3.0)], [800.0, 0.0], [0.0, 5.0]])
    sure = metrics.confidence(logits)
    assert float(sure[0]) == pytest.approx(0.75)
    assert float(sure[1]) == 1.0
    assert metrics.class_shares(logits).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_bad_input():
    a = torch.zeros(4, 3)
    for wrong, error, text in (
        (torch.zeros(1, 3), ValueError, "n >= 2"),
        (torch.zeros(4), ValueError, "n >= 2"),
        (torch.full((4, 3), float("nan")), ValueError, "finite"),
        (torch.zeros(4, 2), ValueError, "as many features"),
        (torch.zeros(4, 3, dtype=torch.int64), TypeError, "must be float"),
        ([1.0], TypeError, "Tensor"),
    ):
        with pytest.raises(error, match=text):
            metrics.frechet_distance(a, wrong)
    with pytest.raises(ValueError, match="as many points"):
        metrics.sliced_wasserstein(a, a[:3])
    with pytest.raises(ValueError, match="directions"):
        metrics.sliced_wasserstein(a, a, directions=0)
    with pytest.raises(ValueError, match="data must hold"):
        metrics.nearest_distance(a, a[:0])
    with pytest.raises(ValueError, match="data must hold"):
        metrics.nearest_distance(a, a[:, :2])
    with pytest.raises(ValueError, match="logits must have shape"):
        metrics.confidence(a[0])


def test_nearest_distance_of_samples_without_further_dimensions():
    near = metrics.nearest_distance(torch.tensor([0.0, 2.6]), torch.tensor([1.0, 3.0, 9.0]))
    torch.testing.assert_close(near, torch.tensor([1.0, 0.4]).double(), atol=1e-6, rtol=0)
