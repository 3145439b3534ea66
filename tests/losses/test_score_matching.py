"""Denoising score matching at the exact denoiser, with controls that must fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmsolvers import losses, noise
from cmsolvers.denoisers import EDM
from cmsolvers.denoisers.oracles import Gaussian

F64 = torch.float64


def data(n: int = 64, std: float = 0.5, dim: int = 3) -> Tensor:
    return std * noise.normal((n, dim), 3, dtype=torch.float64)


def test_score_matching_is_least_at_the_exact_denoiser():
    gauss = Gaussian(0.5)
    x0, sigma = data(4096), torch.logspace(-1, 0.5, 4096).double()

    def value(scale: float, shift: float) -> float:
        def denoiser(x: Tensor, s: Tensor) -> Tensor:
            return gauss.denoiser(x, s) * scale + shift

        return float(losses.dsm(denoiser, x0, key=2, step=0, levels=sigma).loss)

    best = value(1.0, 0.0)
    assert all(value(1 + e, 0) > best for e in (-0.1, 0.1))
    assert all(value(1, e) > best for e in (-0.05, 0.05))


def test_score_matching_gradient_vanishes_in_expectation_at_the_exact_denoiser():
    """EDM with F = 0 is exact when the data have sigma_data; a wrong sigma_data is not."""

    def gradient(sigma_data: float) -> float:
        w = torch.zeros((), dtype=torch.float64, requires_grad=True)
        model = EDM(lambda x, c: w * x, sigma_data)
        x0 = 0.5 * noise.normal((200_000, 1), 0, dtype=torch.float64)
        loss = losses.dsm(model, x0, key=1, step=0, levels=0.7, sigma_data=sigma_data).loss
        return abs(float(torch.autograd.grad(loss, w)[0]))

    assert gradient(0.5) < 0.01
    assert gradient(0.8) > 0.1


def test_edm_weight_makes_an_untrained_loss_one():
    x0 = data(100_000, dim=1)
    for sigma in (0.05, 0.5, 5.0):
        model = EDM(lambda x, c: torch.zeros_like(x))
        found = losses.dsm(model, x0, key=4, step=0, levels=sigma)
        assert float(found.loss) == pytest.approx(1, abs=0.02)


def test_the_default_weight_of_score_matching_has_sigma_data():
    """D = x, x0 = 0, sigma 1.5, sd 2: (1.5^2 + 2^2) / (1.5 * 2)^2 (1.5 z)^2."""
    x0 = torch.zeros(5, 1, dtype=F64)
    z = noise.normal((5, 1), 7, stream=noise.TRAINING, dtype=F64)
    given = {"key": 7, "step": 0, "levels": 1.5}
    loss = losses.dsm(lambda x, s: x, x0, sigma_data=2.0, **given).per_sample
    torch.testing.assert_close(loss, 6.25 / 9 * (1.5 * z[:, 0]) ** 2, rtol=1e-12, atol=0.0)
    other = losses.dsm(lambda x, s: x, x0, **given).per_sample
    torch.testing.assert_close(other, 2.5 / 0.5625 * (1.5 * z[:, 0]) ** 2, rtol=1e-12, atol=0.0)


def test_score_matching_compiles_whole():
    def loss(x0, sigma):
        return losses.dsm(EDM(lambda x, c: x.tanh()), x0, key=1, step=0, levels=sigma).loss

    x0, sigma = data(6).float(), torch.linspace(0.1, 3.0, 6)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x0, sigma), loss(x0, sigma))
