"""Direct calls of denoisers, as training makes them, against the same formulas in plain torch.

The network returns its input: what is measured is all that a call does besides the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import compare
from torch import Tensor

from cmsolvers.denoisers import EDM, ConsistencyFunction

IMAGE, TINY = (64, 3, 32, 32), (64, 2)
DATA, END = 0.5, 0.002
LEVEL = 0.7


def network(x: Tensor, c_noise: Tensor) -> Tensor:
    return x


def preconditioned(boundary: float) -> Callable[[Tensor, float | Tensor], Tensor]:
    """c_skip x + c_out F(c_in x, c_noise) as one writes it, coefficients in float64."""

    def call(x: Tensor, sigma: float | Tensor) -> Tensor:
        if isinstance(sigma, Tensor):
            level: Any = sigma.double().reshape(-1, *[1] * (x.ndim - 1))
            c_noise = (0.25 * sigma.double().log()).float()
            root = (level * level + DATA * DATA).sqrt()
        else:
            level = sigma
            c_noise = torch.full(x.shape[:1], 0.25 * math.log(sigma), device=x.device)
            root = math.sqrt(level * level + DATA * DATA)
        shifted = level - boundary
        c_skip, c_out = DATA * DATA / (shifted * shifted + DATA * DATA), shifted * DATA / root
        if boundary == 0.0:
            c_skip = DATA * DATA / (root * root)
        c_in = 1.0 / root
        if isinstance(sigma, Tensor):
            c_skip, c_out, c_in = c_skip.to(x), c_out.to(x), c_in.to(x)
        return c_skip * x + c_out * network(c_in * x, c_noise)

    return call


@pytest.mark.parametrize("shape", [TINY, IMAGE], ids=str)
@pytest.mark.parametrize("levels", ["tensor", "number"])
@pytest.mark.parametrize("kind", ["EDM", "ConsistencyFunction"])
def test_direct_call(
    benchmark: Any, device: str, kind: str, levels: str, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device)
    vector = torch.rand(shape[0], generator=generator).mul(5).add(0.01).to(device)
    sigma: float | Tensor = vector if levels == "tensor" else LEVEL
    if kind == "EDM":
        ours, eager = EDM(network, DATA), preconditioned(0.0)
    else:
        ours, eager = ConsistencyFunction(network, DATA, END), preconditioned(END)
    torch._dynamo.reset()  # the rivals of all rows are one function, compiled a few times at most
    compiled = torch.compile(eager)
    torch.testing.assert_close(ours(x, sigma), eager(x, sigma))
    torch.testing.assert_close(ours(x, sigma), compiled(x, sigma))
    with torch.no_grad():
        compare(
            benchmark,
            f"{kind}, level as a {levels}, {list(shape)}, {device}",
            lambda: ours(x, sigma),
            {"eager": lambda: eager(x, sigma), "compiled": lambda: compiled(x, sigma)},
            moved=5 * x.nbytes,  # c_in x: read, write; D: read x and F, write
            device=device,
            calls=1000 if shape == TINY else 100,
        )
