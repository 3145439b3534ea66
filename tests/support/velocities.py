"""A small network of two times, and what the flow losses' references are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import noise
from support.columns import column

F64 = torch.float64
SIZE = 3
KEY = 11
NULL = 5


class VelocityNet(nn.Module):
    """A smooth network of (x, t, s, label, omega, t_min, t_max), [B, 3] -> [B, 3], or two of them.

    Args:
        heads: 1 or 2 tensors.
        seed: of the weights.
    """

    def __init__(self, heads: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.heads = heads
        generator = torch.Generator().manual_seed(seed)
        shapes = ((24, SIZE + 6), (24,), (heads * SIZE, 24))
        made = [torch.randn(*shape, dtype=F64, generator=generator) / 2 for shape in shapes]
        self.first, self.bias, self.last = (nn.Parameter(weight) for weight in made)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        omega: Tensor | None = None,
        t_min: Tensor | None = None,
        t_max: Tensor | None = None,
    ) -> Any:
        told = [t, s, label, omega, t_min, t_max]
        columns = [torch.zeros_like(t) if value is None else value for value in told]
        seen = torch.cat([x, *(value.to(x.dtype)[:, None] for value in columns)], dim=1)
        made = torch.tanh(seen @ self.first.to(x.dtype).T + self.bias) @ self.last.to(x.dtype).T
        return made if self.heads == 1 else (made[:, :SIZE], made[:, SIZE:])


def batch(size: int = 32, seed: int = 3) -> Tensor:
    """Data, float64 [size, 3]."""
    return 0.7 * noise.normal((size, SIZE), seed, stream=noise.OTHER, dtype=F64)


def z_of(x0: Tensor, step: int = 0, key: int = KEY) -> Tensor:
    """The z of a loss."""
    return noise.normal(
        tuple(x0.shape), key, stream=noise.TRAINING, draw=step, dtype=F64, device=x0.device
    )


def extras(x0: Tensor, count: int, step: int = 0, key: int = KEY) -> Tensor:
    """What a formula's `at.uniform(count)` gives."""
    drawn = noise.uniform((len(x0), 12 + count), key, stream=noise.LEVELS, draw=step, dtype=F64)
    return drawn[:, 12:]


def pairs(size: int = 32, seed: int = 5, equal: int = 4) -> tuple[Tensor, Tensor]:
    """Times t >= s in flow coordinates, the first t = 1 and s = 0.

    Every `equal`-th pair has s = t; with 0 there is no such pair.
    """
    u = noise.uniform((size, 2), seed, stream=noise.OTHER, dtype=F64)
    t, s = u.amax(1), u.amin(1)
    t[0], s[0] = 1.0, 0.0
    if equal:
        s[1::equal] = t[1::equal]
    return t, s


def noised(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """(1 - t) x0 + t z."""
    return (1 - column(t)) * x0 + column(t) * z


def total_derivative(
    net: Callable[..., Tensor], x: Tensor, t: Tensor, s: Tensor, v: Tensor
) -> Tensor:
    """d/dt net(x + v dt, t, s) by torch.func, without gradient."""
    with torch.no_grad():
        return torch.func.jvp(
            lambda y, u: net(y, u, s), (x.detach(), t), (v.detach(), torch.ones_like(t))
        )[1]


def adaptive(square: Tensor, p: float, eps: float) -> Tensor:
    return square / (square.detach() + eps) ** p


def same_gradient(value: Tensor, reference: Tensor, net: nn.Module, tolerance: float) -> None:
    """Assert that two scalars and their gradients in the weights of a network agree."""
    weights = list(net.parameters())
    ours = torch.autograd.grad(value, weights, allow_unused=True)
    theirs = torch.autograd.grad(reference, weights, allow_unused=True)
    torch.testing.assert_close(value.double(), reference, rtol=tolerance, atol=tolerance)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
