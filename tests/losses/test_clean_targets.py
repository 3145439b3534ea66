"""Where the lower level is 0 the target is the clean sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import losses, noise

F64 = torch.float64


def data(n: int = 64, std: float = 0.5, dim: int = 3) -> Tensor:
    return std * noise.normal((n, dim), 3, dtype=torch.float64)


X0 = torch.zeros(4, 3)


def same(x: Tensor, sigma: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("kind", ["training", "distillation"])
@pytest.mark.parametrize("target", [None, "another"])
def test_at_level_zero_the_target_is_the_data(kind: str, target: str | None):
    """As in easy consistency tuning; the other samples are what they are without such a one."""
    x0, f = data(8), nn.Linear(3, 3).double()
    student = lambda x, s: f(x) / (1 + s.reshape(-1, 1))  # noqa: E731
    other = None if target is None else lambda x, s: student(x, s) / s.reshape(-1, 1)

    def loss(x0: Tensor, high: Any, low: Any, offset: int = 0) -> Tensor:
        more = {"key": noise.Key(3, offset), "step": 0, "reduction": "none", "target": other}
        more |= {"distance": losses.mean_square, "levels": (high, low)}
        if kind == "training":
            return losses.ict(student, x0, **more).loss
        return losses.cd(student, x0, teacher=student, **more).loss

    high = torch.linspace(1.0, 3.0, 8, dtype=F64)
    low = high / 2
    low[[2, 5]] = 0.0
    got = loss(x0, high, low)
    noisy = x0 + high[:, None] * noise.normal(x0.shape, 3, stream=noise.TRAINING, dtype=F64)
    scale = 1 / high if kind == "training" else torch.ones_like(high)
    clean = (student(noisy, high) - x0).square().mean(1) * scale
    torch.testing.assert_close(got[[2, 5]], clean[[2, 5]])
    for b in (0, 1, 3, 4, 6, 7):
        torch.testing.assert_close(got[b : b + 1], loss(x0[b : b + 1], high[b], low[b], b))
        assert not torch.allclose(got[b], clean[b])  # the control
    torch.testing.assert_close(loss(x0, 2.0, 0.0), loss(x0, 2.0, torch.zeros(8, dtype=F64)))
    assert torch.autograd.grad(got.sum(), f.weight)[0].isfinite().all()


def test_at_level_zero_alone_the_target_is_not_called():
    def never(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError

    given = {"key": 1, "step": 0, "target": never}
    assert losses.ict(same, X0, levels=(1.0, 0.0), **given).loss > 0
    assert losses.ict(same, X0, levels=(1.0, torch.zeros(4)), **given).loss > 0
    with pytest.raises(AssertionError):
        losses.ict(same, X0, levels=(1.0, 0.1), **given)
