"""MMD against its population value for Gaussians and a double loop; precision and recall."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cmsolvers import noise
from cmsolvers.tasks import kernel_distances as kd
from cmsolvers.tasks import neighbours as nb

F64 = torch.float64


def gaussian(n: int, d: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * noise.normal((n, d), seed, dtype=F64)


def loop_mmd(a: np.ndarray, b: np.ndarray, kernel) -> float:
    def mean(x, y, same):
        pairs = [
            kernel(x[i], y[j])
            for i in range(len(x))
            for j in range(len(y))
            if not (same and i == j)
        ]
        return sum(pairs) / len(pairs)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def test_mmd_is_the_double_loop(monkeypatch):
    a, b = gaussian(13, 3, 0), gaussian(9, 3, 1, 0.4)
    want = loop_mmd(a.numpy(), b.numpy(), lambda x, y: math.exp(-((x - y) ** 2).sum() / 2 / 0.49))
    cubic = loop_mmd(a.numpy(), b.numpy(), lambda x, y: (x @ y / 3 + 1) ** 3)
    for block in (1 << 22, 20, 1):  # in chunks of any size
        monkeypatch.setattr(kd, "BLOCK", block)
        assert kd.mmd(a, b, kd.gaussian_kernel(0.7)) == pytest.approx(want, rel=1e-12)
        assert kd.mmd(a, b, kd.polynomial_kernel(3)) == pytest.approx(cubic, rel=1e-12)
    biased = want + (1 / 13 + 1 / 9)  # a diagonal that was left in
    assert kd.mmd(a, b, kd.gaussian_kernel(0.7)) != pytest.approx(biased, rel=0.1)


def population(d: int, m: float, s: float, t: float, h: float) -> float:
    """MMD^2 between N(0, s^2 I) and N(m 1, t^2 I) with the Gaussian kernel."""

    def mean(variance: float, shift: float) -> float:
        ratio = h * h / (h * h + variance)
        return ratio ** (d / 2) * math.exp(-d * shift**2 / 2 / (h * h + variance))

    return mean(2 * s * s, 0) + mean(2 * t * t, 0) - 2 * mean(s * s + t * t, m)


def test_mmd_of_gaussians_is_the_closed_form():
    n, d, h = 2000, 3, 1.5
    for m, t in ((0.0, 1.0), (0.5, 1.0), (0.2, 1.4)):
        found = [
            kd.mmd(gaussian(n, d, 2 * i), gaussian(n, d, 2 * i + 1, m, t), kd.gaussian_kernel(h))
            for i in range(6)
        ]
        error = np.std(found, ddof=1) / math.sqrt(6)
        assert abs(np.mean(found) - population(d, m, 1.0, t, h)) < 4 * error + 1e-9
    assert population(d, 0.5, 1.0, 1.0, h) > 20 * error  # the test can tell them apart


def test_kernel_distance_of_gaussians():
    """E (x.y/d + 1)^3 = 1 + 3 E(x.y)^2 / d^2 for independent unit normals; a shift is seen."""
    d = 4
    a, b = gaussian(3000, d, 0), gaussian(3000, d, 1)
    value, error = kd.kernel_distance(a, b, subsets=20, size=500)
    assert abs(value) < 0.02 and 0 < error < 0.01
    m = 0.5  # x.y has mean d m^2 for two points of the shifted set, 0 across
    shifted, _ = kd.kernel_distance(a, b + m, subsets=20, size=1500)
    x, y = gaussian(400_000, d, 5, m), gaussian(400_000, d, 6, m)
    z = gaussian(400_000, d, 7)

    def cubic(u, v):
        return float((((u * v).sum(1) / d + 1) ** 3).mean())

    w = gaussian(400_000, d, 8)
    assert shifted == pytest.approx(cubic(z, w) + cubic(x, y) - 2 * cubic(x, z), abs=0.06)
    assert kd.kernel_distance(a, b, subsets=3, size=50, seed=1) != kd.kernel_distance(
        a, b, subsets=3, size=50, seed=2
    )


def test_median_bandwidth():
    assert kd.median_bandwidth(torch.tensor([[0.0], [1.0], [4.0]])) == 3.0
    with pytest.raises(ValueError, match="different points"):
        kd.median_bandwidth(torch.ones(4, 2))


@pytest.mark.parametrize("block", [1 << 22, 50, 1])
def test_neighbours_are_those_of_all_distances(monkeypatch, block):
    monkeypatch.setattr(nb, "BLOCK", block)
    a, b = gaussian(17, 5, 0).float(), gaussian(40, 5, 1).float()
    every = (a[:, None].double() - b[None].double()).norm(dim=2)
    distances, rows = nb.nearest_neighbours(a, b, 4)
    want = every.sort(dim=1)
    torch.testing.assert_close(distances, want.values[:, :4], rtol=1e-14, atol=0)
    assert torch.equal(rows, want.indices[:, :4])
    own, _ = nb.nearest_neighbours(b, b, 1, excluded=torch.arange(40))
    among = torch.cdist(b.double(), b.double()).fill_diagonal_(torch.inf).amin(1)
    torch.testing.assert_close(own[:, 0], among, rtol=1e-9, atol=1e-12)
    assert float(nb.nearest_neighbours(b, b, 1)[0].max()) == 0.0


def test_small_distances_far_from_zero_keep_their_digits():
    data = gaussian(30, 6, 0) + 1e4
    samples = data[:5].clone()
    samples[:, 0] += 1e-7
    distances, rows = nb.nearest_neighbours(samples, data)
    step = samples[:, 0] - data[:5, 0]
    torch.testing.assert_close(distances[:, 0], step, rtol=1e-12, atol=0)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]


def plain_precision(real: np.ndarray, fake: np.ndarray, k: int) -> float:
    inside = 0
    radii = [np.sort(np.linalg.norm(real - x, axis=1))[k] for x in real]  # place 0 is x itself
    for y in fake:
        distances = np.linalg.norm(real - y, axis=1)
        inside += any(d <= r for d, r in zip(distances, radii, strict=True))
    return inside / len(fake)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_the_definition(monkeypatch, k):
    real, fake = gaussian(60, 2, 0), gaussian(50, 2, 1, 0.8, 0.7)
    want = (
        plain_precision(real.numpy(), fake.numpy(), k),
        plain_precision(fake.numpy(), real.numpy(), k),
    )
    for block in (1 << 22, 100):
        monkeypatch.setattr(nb, "BLOCK", block)
        assert nb.precision_recall(real, fake, k=k) == want
    assert want[0] != want[1]
    assert nb.precision_recall(fake, real, k=k) == want[::-1]


def test_precision_and_recall_tell_quality_from_coverage():
    clusters = torch.cat((gaussian(200, 2, 0, -5, 0.3), gaussian(200, 2, 1, 5, 0.3)))
    one = gaussian(400, 2, 2, -5, 0.3)
    spread = gaussian(400, 2, 3, 0, 8)
    precision, recall = nb.precision_recall(clusters, one)
    assert precision > 0.9 and recall < 0.6
    precision, _ = nb.precision_recall(clusters, spread)
    assert precision < 0.2
    assert nb.precision_recall(clusters, clusters) == (1.0, 1.0)
    assert nb.precision_recall(clusters, one + 100) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: nb.nearest_neighbours(torch.zeros(2, 3), torch.zeros(2, 4)), "3 numbers"),
        (lambda: nb.nearest_neighbours(torch.zeros(2, 3), torch.zeros(0, 3)), "1 other points"),
        (lambda: nb.nearest_neighbours(torch.full((2, 3), math.nan), torch.zeros(2, 3)), "finite"),
        (lambda: nb.precision_recall(torch.zeros(3, 2), torch.zeros(9, 2)), "more than k = 3"),
        (lambda: kd.mmd(torch.zeros(1, 2), torch.zeros(9, 2), kd.polynomial_kernel()), "2 points"),
        (lambda: kd.gaussian_kernel(0.0), "bandwidth must be"),
    ],
)
def test_bad_input_of_distances(call, error):
    with pytest.raises(ValueError, match=error):
        call()
