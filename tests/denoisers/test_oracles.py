"""Oracles against brute force: quadrature over the data, and derivatives of the log density."""

import math

import pytest
import torch

from cmsolvers.denoisers.oracles import DataSet, Gaussian, GaussianMixture

F64 = torch.float64
POINTS = torch.tensor([[-1.0, 0.5], [0.3, 0.1], [1.2, -0.7], [1.25, -0.7]], dtype=F64)
MIXTURE = GaussianMixture([[-1.0, 0.5], [0.3, 0.1], [1.2, -0.7]], [0.1, 0.3, 0.7], [1, 2, 3.0])
ORACLES = {
    "gaussian": Gaussian(0.5, torch.tensor([0.2, -0.4], dtype=F64)),
    "mixture": MIXTURE,
    "data": DataSet(POINTS),
}
LEVELS = torch.tensor([0.05, 0.3, 1.0, 5.0, 80.0], dtype=F64)
each_oracle = pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES)


def state():
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    return x * (1 + LEVELS[:, None])


@each_oracle
def test_score_is_the_gradient_of_the_log_density(oracle):
    x = state().requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_density(x, LEVELS).sum(), x)
    torch.testing.assert_close(oracle.score(x, LEVELS), gradient, rtol=1e-8, atol=1e-10)


@each_oracle
def test_tweedie(oracle):
    x = state()
    expected = x + LEVELS[:, None] ** 2 * oracle.score(x, LEVELS)
    torch.testing.assert_close(oracle(x, LEVELS), expected, rtol=1e-9, atol=1e-9)


@each_oracle
def test_rows_do_not_depend_on_one_another(oracle):
    x = state()
    for b, s in enumerate(LEVELS.tolist()):
        for method in (oracle.denoiser, oracle.score, oracle.log_density):
            row = method(x[b : b + 1], s)
            torch.testing.assert_close(method(x, LEVELS)[b : b + 1], row, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_mixture_by_quadrature(sigma):
    """p(x) and E[x0 | x] by integrating over x0 on a fine grid, in one dimension."""
    oracle = GaussianMixture([-1.0, 0.4, 2.0], [0.2, 0.5, 0.1], [0.5, 0.3, 0.2])
    y = torch.linspace(-12, 12, 200_001, dtype=F64)
    prior = sum(
        w * torch.exp(-0.5 * ((y - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
        for m, s, w in ((-1.0, 0.2, 0.5), (0.4, 0.5, 0.3), (2.0, 0.1, 0.2))
    )
    for value in (-1.7, 0.0, 1.3):
        kernel = torch.exp(-0.5 * ((value - y) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        density = torch.trapezoid(prior * kernel, y)
        mean = torch.trapezoid(prior * kernel * y, y) / density
        x = torch.tensor([value], dtype=F64)
        assert oracle.log_density(x, sigma).exp().item() == pytest.approx(density.item(), rel=1e-9)
        assert oracle(x, sigma).item() == pytest.approx(mean.item(), rel=1e-8)


@pytest.mark.parametrize("chunk", [1, 3, 4, 100, None])
def test_data_set_by_hand(chunk):
    oracle, x = DataSet(POINTS, chunk=chunk), state()
    for b, s in enumerate(LEVELS.tolist()):
        kernel = [
            math.exp(-sum((x[b] - p).tolist()[k] ** 2 for k in range(2)) / (2 * s * s))
            for p in POINTS
        ]
        if sum(kernel) < 1e-200:
            continue
        mean = sum(w * p for w, p in zip(kernel, POINTS, strict=True)) / sum(kernel)
        row = x[b : b + 1]
        torch.testing.assert_close(oracle(row, s)[0], mean, rtol=1e-10, atol=1e-12)
        density = math.log(sum(kernel) / 4 / (2 * math.pi * s * s))
        assert oracle.log_density(row, s).item() == pytest.approx(density, rel=1e-10)


def test_data_set_far_away_and_at_zero():
    oracle = DataSet(POINTS)
    x = torch.tensor([[1e3, 0.0], [-1e3, 2e3]], dtype=F64)
    for sigma in (0.0, 1e-8, 1e-3):
        assert torch.equal(oracle(x, sigma), POINTS[[3, 0]])
    assert oracle.log_density(x, 1e-3).isfinite().all()
    assert torch.equal(oracle(x.float(), 0.0), POINTS[[3, 0]].float())


def test_mixture_far_away():
    x = torch.tensor([[1e6, 0.0]], dtype=F64)
    assert MIXTURE.log_density(x, 0.1).isfinite().all() and MIXTURE(x, 0.1).isfinite().all()


def test_a_data_set_is_a_mixture_of_points():
    narrow = GaussianMixture(POINTS, 1e-9)
    x = state()
    torch.testing.assert_close(DataSet(POINTS)(x, LEVELS), narrow(x, LEVELS), rtol=1e-8, atol=1e-8)
    density = DataSet(POINTS).log_density(x, LEVELS)
    torch.testing.assert_close(density, narrow.log_density(x, LEVELS), rtol=1e-8, atol=1e-8)


def test_gaussian_is_a_mixture_of_one():
    one = GaussianMixture([[0.2, -0.4]], 0.5)
    for name in ("denoiser", "score", "log_density"):
        got, expected = (getattr(o, name)(state(), LEVELS) for o in (ORACLES["gaussian"], one))
        torch.testing.assert_close(got, expected)


def test_gaussian_consistency_is_a_solution_of_the_ode():
    """d/dsigma f(x(sigma), sigma) = 0 along dx/dsigma = (x - D)/sigma, and the boundary."""
    data = Gaussian(0.5, 0.3)
    x = state().requires_grad_()
    level = LEVELS.clone().requires_grad_()
    slope = (x - data(x, level)) / level[:, None]
    _, total = torch.autograd.functional.jvp(
        lambda x, s: data.consistency(x, s), (x, level), (slope.detach(), torch.ones_like(level))
    )
    assert total.abs().max() < 1e-13
    assert torch.equal(data.consistency(x, 0.002, 0.002), x)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4), (3, 2, 2), (3, 1, 2, 2)])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_any_trailing_shape(shape, dtype):
    size = math.prod(shape[1:])
    points = torch.randn(6, *shape[1:], dtype=F64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    for oracle in (Gaussian(0.5, 0.1), GaussianMixture(points, 0.3), DataSet(points)):
        y = oracle(x.to(dtype), 0.5)
        assert y.shape == shape and y.dtype == dtype
        flat = oracle(x.reshape(3, size), 0.5).reshape(shape)
        torch.testing.assert_close(y, flat.to(dtype), rtol=2e-2, atol=2e-2)
        assert oracle.log_density(x, 0.5).shape == (3,)


def test_mixture_sampling_has_its_moments():
    draws = MIXTURE.sample(100_000, generator=torch.Generator().manual_seed(0))
    mean = (MIXTURE.weights[:, None] * MIXTURE.means).sum(0)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.02)
