"""Consistency training and distillation at exact functions, and as limits of each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.schedules import karras_sigmas
from support.orders import slope

SIGMA_MIN = 0.002


def data(n: int = 64, std: float = 0.5, dim: int = 3) -> Tensor:
    return std * noise.normal((n, dim), 3, dtype=torch.float64)


# --- distillation at the exact consistency function ----------------------------------------------


def distillation_errors(solver: str = "heun", *, shift: float = 0.0) -> tuple[list, list]:
    """Root mean square of f minus target at the exact function, and the steps."""
    gauss = Gaussian(0.5)

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        return gauss.consistency(x, sigma * (1 + shift), SIGMA_MIN)

    def target(x: Tensor, sigma: Tensor) -> Tensor:
        return gauss.consistency(x, sigma, SIGMA_MIN)

    steps, errors = [], []
    for n in (16, 32, 64, 128, 256, 512):
        # One pair of a grid with n levels from 2 to 0.2: ln-steps halve with n.
        sigma, sigma_next = 1.0, 1.0 * 0.1 ** (1 / n)
        value = losses.cd(
            exact,
            data(),
            key=5,
            step=0,
            teacher=gauss.denoiser,
            target=target,
            levels=(sigma, sigma_next),
            solver=solver,
        )
        steps.append(sigma - sigma_next)
        errors.append(math.sqrt(float(value.loss)))
    return errors, steps


def test_distillation_loss_vanishes_at_the_order_of_the_solver():
    # One step of a method of order p misses by h^(p + 1).
    assert -slope(*distillation_errors("heun")) == pytest.approx(3, abs=0.1)
    assert -slope(*distillation_errors("euler")) == pytest.approx(2, abs=0.1)


def test_distillation_loss_stays_when_student_is_told_the_wrong_level():
    errors, steps = distillation_errors("heun", shift=0.01)
    assert abs(slope(errors, steps)) < 0.1
    assert errors[-1] > 100 * distillation_errors("heun")[0][-1]


def test_distillation_loss_summed_over_a_grid_falls_at_second_order():
    """Errors over a grid add up: order 2 for Heun."""
    gauss = Gaussian(0.5)

    def exact(x: Tensor, sigma: Tensor) -> Tensor:
        return gauss.consistency(x, sigma, SIGMA_MIN)

    totals = []
    counts = [20, 40, 80, 160, 320]
    for n in counts:
        grid = karras_sigmas(n + 1, SIGMA_MIN, 80.0, append_zero=False).repeat_interleave(16)
        found = losses.cd(
            exact,
            data(16).repeat(n, 1),
            key=1,
            step=0,
            teacher=gauss.denoiser,
            levels=(grid[:-16], grid[16:]),
        )
        totals.append(float(found.per_sample.reshape(n, 16).mean(1).sqrt().sum()))
    assert slope(totals[2:], counts[2:]) == pytest.approx(2, abs=0.1)


# --- consistency training and distillation -------------------------------------------------------


class Bent(nn.Module):
    """A small non-linear function of x and sigma with a few parameters, smooth in all."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.7, -0.3, 0.2, 0.4], dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.double()[:, None] if x.ndim > 1 else sigma
        a, b, c, d = self.w
        return a * torch.tanh(x / (1 + s)) + b * x / (1 + s * s).sqrt() + c * torch.sin(d * x) * s


def expected_gradients(n: int, *, same_noise: bool = True) -> tuple[Tensor, Tensor]:
    """Expected gradients of CT and of CD with the exact score, by quadrature over x0 and z.

    Data are two points, so E over x0 is a sum; E over z is Gauss-Hermite. The score is exact.
    """
    points, sigma = torch.tensor([-0.6, 0.9], dtype=torch.float64), 0.8
    sigma_next = sigma * (1 - 1.0 / n)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, w = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    mixture = GaussianMixture(points, 1e-9, [0.5, 0.5])
    model = Bent()

    def gradient(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        s, t = x.new_full((len(x),), sigma), x.new_full((len(x),), sigma_next)
        with torch.no_grad():
            aim = model(y[:, None], t)
        value = (weight * (model(x[:, None], s) - aim).square().mean(1)).sum()
        # The stop-gradient loss is O(1/n^2), its gradient O(1/n): n times it has a limit.
        return torch.autograd.grad(n * value, model.parameters())[0]

    x0 = points.repeat_interleave(len(z))
    zz, ww = z.repeat(2), w.repeat(2) / 2
    x = x0 + sigma * zz
    if same_noise:
        ct = gradient(x, x0 + sigma_next * zz, ww)
    else:
        i, j = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
        grid_x0 = points.repeat_interleave(i.numel())
        zi, zj = z[i.flatten()].repeat(2), z[j.flatten()].repeat(2)
        wij = (w[i] * w[j]).flatten().repeat(2) / 2
        ct = gradient(grid_x0 + sigma * zi, grid_x0 + sigma_next * zj, wij)
    denoised = mixture.denoiser(x[:, None], sigma)[:, 0]
    step = x + (sigma_next - sigma) * (x - denoised) / sigma
    return ct, gradient(x, step, ww)


def library_gradients(n: int, solver: str, samples: int = 300_000) -> tuple[Tensor, Tensor]:
    """The same from the library's losses, by Monte Carlo: both see the same samples and noise."""
    points = torch.tensor([-0.6, 0.9], dtype=torch.float64)
    x0, model = points.repeat(samples // 2)[:, None], Bent()
    mixture = GaussianMixture(points, 1e-9, [0.5, 0.5])
    common = {
        "weight": lambda s, t: n * torch.ones_like(s),
        "key": 3,
        "step": 0,
        "levels": (0.8, 0.8 * (1 - 1.0 / n)),
    }
    ct = losses.ct(model, x0, **common).loss
    cd = losses.cd(model, x0, teacher=mixture, solver=solver, **common).loss
    return tuple(torch.autograd.grad(value, model.parameters())[0] for value in (ct, cd))


@pytest.mark.parametrize(("solver", "tolerance"), [("euler", 0.1), ("heun", 0.2)])
def test_gradients_of_the_library_losses_meet_at_the_same_rate(solver: str, tolerance: float):
    counts = [16.0, 32.0, 64.0]
    gaps = []
    for n in counts:
        ct, cd = library_gradients(int(n), solver)
        gaps.append(float((ct - cd).norm() / cd.norm()))
    assert slope(gaps, counts) == pytest.approx(1, abs=tolerance)
    # And they are the gradients of the quadrature.
    torch.testing.assert_close(ct, expected_gradients(64)[0], rtol=0.01, atol=1e-4)


def gradient_gaps(**options: bool) -> tuple[list[float], list[float]]:
    counts = [8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
    gaps = []
    for n in counts:
        ct, cd = expected_gradients(int(n), **options)
        gaps.append(float((ct - cd).norm() / cd.norm()))
    return gaps, counts


def test_expected_gradients_of_training_and_distillation_meet_at_first_order():
    assert slope(*gradient_gaps()) == pytest.approx(1, abs=0.1)


def test_expected_gradients_do_not_meet_with_different_noise():
    gaps, counts = gradient_gaps(same_noise=False)
    assert slope(gaps, counts) < 0.5
    assert gaps[-1] > 1


def test_training_pairs_share_their_noise():
    seen = []

    def f(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x, sigma))
        return x

    x0 = data(8)
    high, low = torch.linspace(1, 2, 8).double(), torch.linspace(0.5, 1, 8).double()
    losses.ict(f, x0, key=9, step=4, levels=(high, low))
    z = noise.normal(x0.shape, 9, stream=noise.TRAINING, draw=4, dtype=torch.float64)
    for (x, sigma), level in zip(seen, (high, low), strict=True):
        torch.testing.assert_close(sigma, level)
        torch.testing.assert_close(x, x0 + level[:, None] * z)


def test_student_sits_at_the_larger_level_and_target_gets_no_gradient():
    order = []

    class Net(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.w = name, nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            order.append((self.name, float(sigma[0]), torch.is_grad_enabled()))
            return self.w * x

    student, target = Net("student"), Net("target")
    given = {"key": 0, "step": 0, "levels": (2.0, 1.0)}
    losses.ict(student, data(4).float(), target=target, **given).loss.backward()
    assert order == [("student", 2.0, True), ("target", 1.0, False)]
    assert student.w.grad is not None
    assert target.w.grad is None


def test_weight_is_taken_at_the_pair_and_lambda_is_one_by_default():
    x0 = data(4)
    given = {"key": 1, "step": 0, "levels": (2.0, 1.5)}
    plain = losses.ct(lambda x, s: x, x0, **given).per_sample
    z = noise.normal(x0.shape, 1, stream=noise.TRAINING, dtype=torch.float64)
    torch.testing.assert_close(plain, (0.5 * z).square().mean(1))
    weighted = losses.ct(lambda x, s: x, x0, weight=losses.inverse_gap, **given).per_sample
    torch.testing.assert_close(weighted, plain / 0.5)
