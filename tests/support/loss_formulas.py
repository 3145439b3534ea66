"""What tests of losses by hand share: a batch, its noise, a network with one mask, a comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import noise
from support.loss_cases import SmallNet

F64 = torch.float64
SEED, STEP = 11, 5
X0 = torch.linspace(-1.2, 1.3, 18, dtype=F64).reshape(6, 3)
T = torch.tensor([0.9, 0.8, 0.6, 0.5, 0.3, 1.0], dtype=F64)
S = torch.tensor([0.4, 0.8, 0.0, 0.45, 0.1, 0.5], dtype=F64)
Z = noise.normal((6, 3), SEED, stream=noise.TRAINING, draw=STEP, dtype=F64)
U = noise.uniform((6, 16), SEED, stream=noise.LEVELS, draw=STEP, dtype=F64)[:, 12:]
V = Z - X0


class Masked(nn.Module):
    """A network with dropout whose every pass, called by itself, has the same mask."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **extra: Any) -> Tensor:
        torch.manual_seed(3)
        return self.net(*args, **extra)


def small(times: int = 2, seed: int = 0) -> SmallNet:
    return SmallNet(times, dropout=0.3, seed=seed).double()


def assert_same(loss: Any, model: Any, expected: Tensor, right: nn.Module, **options: Any) -> None:
    """Values per sample and gradients, to 1e-12 of the largest."""
    torch.manual_seed(3)
    found = loss(model, X0, key=SEED, step=STEP, **{"levels": (T, S), **options})
    torch.testing.assert_close(found.per_sample, expected.detach(), rtol=1e-12, atol=1e-13)
    found.loss.backward()
    expected.mean().backward()
    compared = 0
    for p, q in zip(model.parameters(), right.parameters(), strict=True):
        if q.grad is None or not q.grad.any():
            assert p.grad is None or not p.grad.any()
            continue
        compared += 1
        scale = float(q.grad.abs().max())
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-12 * scale)
    assert compared >= 4
