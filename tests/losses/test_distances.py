"""Norms of residuals against their formulas, and distances that networks measure."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.losses.evaluation.combination import of
from cmsolvers.losses.formulas import perceptual


def data(n: int = 64, std: float = 0.5, dim: int = 3) -> Tensor:
    return std * noise.normal((n, dim), 3, dtype=torch.float64)


NORMS = {
    "mean_abs": losses.mean_abs,
    "mean_square": losses.mean_square,
    "square_sum": losses.square_sum,
    "norm": losses.norm,
    "pseudo_huber": losses.pseudo_huber(),
    "elementwise_huber": losses.elementwise_huber(),
}


def test_norms_against_their_formulas():
    a, b = data(5, dim=4), data(5, dim=4).flip(0) + 0.1
    d = a - b
    c = 0.00054 * 2
    expected = {
        "mean_abs": d.abs().mean(1),
        "mean_square": (d * d).mean(1),
        "square_sum": (d * d).sum(1),
        "norm": (d * d).sum(1).sqrt(),
        "pseudo_huber": ((d * d).sum(1) + c * c).sqrt() - c,
        "elementwise_huber": ((d * d + 1e-6).sqrt() - 1e-3).mean(1),
    }
    for name, norm in NORMS.items():
        found = norm(of(a) - b)
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_zero_with_finite_gradient_at_equal_inputs(name: str):
    a = data(3).requires_grad_()
    value = NORMS[name](of(a) - a.detach().clone())
    assert float(value.detach().abs().max()) == 0
    assert bool(torch.autograd.grad(value.sum(), a)[0].isfinite().all())


def test_norms_of_half_precision_do_not_overflow():
    a = torch.full((2, 4), 300.0, dtype=torch.float16)
    assert losses.mean_square(of(a) - (-a)).tolist() == [360000.0, 360000.0]


def test_a_distance_between_tensors_takes_the_place_of_a_norm():
    given = {"key": 1, "step": 0, "levels": (2.0, 1.5)}
    net = nn.Linear(3, 3).double()
    between = losses.Between(lambda a, b: (a - b).square().mean(1))
    values = []
    for distance in (between, losses.mean_square):
        found = losses.cd(
            lambda x, s: net(x), data(4), teacher=Gaussian(0.5), distance=distance, **given
        )
        values.append((found.per_sample, torch.autograd.grad(found.loss, net.weight)[0]))
    torch.testing.assert_close(*values)
    with pytest.raises(TypeError, match="function must be callable"):
        losses.Between(3)


def test_lpips_adapter_resizes_and_takes_one_channel():
    seen = []

    def model(a: Tensor, b: Tensor) -> Tensor:
        seen.append(tuple(a.shape))
        return (a - b).square().mean((1, 2, 3), keepdim=True)

    distance = losses.lpips_distance(model=model, size=32).function
    a = torch.rand(2, 1, 8, 8)
    assert distance(a, a).tolist() == [0, 0]
    assert seen == [(2, 3, 32, 32)]
    with pytest.raises(ValueError, match="LPIPS needs images"):
        distance(a[:, 0], a[:, 0])


def test_lpips_is_loaded_once(monkeypatch):
    made = []

    class LPIPS(nn.Module):
        def __init__(self, net: str) -> None:
            super().__init__()
            made.append(net)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    perceptual._loaded.cache_clear()
    assert losses.lpips_distance() and losses.lpips_distance(size=64)
    assert made == ["vgg"]
    perceptual._loaded.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match="lpips_distance needs `pip install lpips`"):
        losses.lpips_distance()
