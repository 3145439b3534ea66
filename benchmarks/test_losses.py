"""A consistency loss, forward and backward, against the same by hand in eager and compiled torch.

The network is free (it returns a parameter of the batch's shape), so what is measured is the loss:
the noise, the scalings, the distance, the weight, and their derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import allocator
import pytest
import torch
from comparison import compare
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction
from cmsolvers.losses import ict

SIGMA_DATA, SIGMA_MIN = 0.5, 0.002
POINTS, IMAGES = (64, 2), (64, 3, 64, 64)
LARGE = (256, 3, 64, 64)
CASES = [(POINTS, "as it is"), *((IMAGES, state) for state in allocator.STATES)]


class Free(nn.Module):
    """A network whose answer costs nothing and has a gradient."""

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        super().__init__()
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        self.answer = nn.Parameter(values.to(device))

    def forward(self, x: Tensor, c_noise: Tensor | None = None) -> Tensor:
        return self.answer.view_as(x)


def huber_constant(x0: Tensor) -> float:
    return 0.00054 * math.sqrt(math.prod(x0.shape[1:]))


def scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in of a consistency model (Song et al. 2023, appendix C)."""
    root = torch.sqrt(sigma**2 + SIGMA_DATA**2)
    shifted = sigma - SIGMA_MIN
    return SIGMA_DATA**2 / (shifted**2 + SIGMA_DATA**2), SIGMA_DATA * shifted / root, 1 / root


def by_hand(net: Callable[[Tensor], Tensor], x0: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """Improved consistency training (Song & Dhariwal 2023) as a user would write it."""
    shape = (-1, *[1] * (x0.dim() - 1))
    high, low = sigma.view(shape), lower.view(shape)
    z = torch.randn_like(x0)
    x, x_next = x0 + high * z, x0 + low * z
    c_skip, c_out, c_in = scalings(high)
    value = c_skip * x + c_out * net(c_in * x)
    with torch.no_grad():
        c_skip, c_out, c_in = scalings(low)
        target = c_skip * x_next + c_out * net(c_in * x_next)
    c = huber_constant(x0)
    apart = torch.sqrt((value - target).square().flatten(1).sum(1) + c * c) - c
    return (apart / (sigma - lower)).mean()


def ours(f: ConsistencyFunction, x0: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """The same as a user of the library writes it."""
    return ict(f, x0, key=1, step=0, levels=(sigma, lower)).loss


def levels(batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Neighbouring levels, float64."""
    sigma = torch.linspace(0.1, 80.0, batch, dtype=torch.float64, device=device)
    return sigma, 0.8 * sigma


def step(loss: Callable[..., Tensor], model: Any, net: Free, *arguments: Tensor) -> None:
    """Forward and backward."""
    net.answer.grad = None
    loss(model, *arguments).backward()


def measure(benchmark: Any, shape: tuple[int, ...], device: str, malloc: str) -> None:
    x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    sigma, lower = levels(shape[0], device)
    single = sigma.float(), lower.float()
    net = Free(shape, device)
    f = ConsistencyFunction(net, SIGMA_DATA, SIGMA_MIN)
    compiled = torch.compile(by_hand)
    compare(
        benchmark,
        f"consistency loss, forward + backward, {list(shape)}, {device}"
        + (f", malloc {malloc}" if malloc in allocator.STATES else ""),
        lambda: step(ours, f, net, x0, sigma, lower),
        {
            "eager": lambda: step(by_hand, net, net, x0, *single),
            "compiled": lambda: step(compiled, net, net, x0, *single),
        },
        moved=12 * x0.nbytes,  # x0, two forms; four read, twice; a gradient
        device=device,
        calls=200 if shape == POINTS else 3,
        at_least={"eager": 4, "compiled": 1} if device == "cpu" else {"eager": 3, "compiled": 1.2},
    )


@pytest.mark.parametrize(("shape", "malloc"), CASES)
def test_consistency_loss(benchmark: Any, shape: tuple[int, ...], malloc: str) -> None:
    if malloc in allocator.STATES and not allocator.put(malloc):
        pytest.skip("no mallopt here")
    measure(benchmark, shape, "cpu", malloc)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_consistency_loss_cuda(benchmark: Any) -> None:
    measure(benchmark, LARGE, "cuda", "")


def test_same_loss() -> None:
    """What is compared is one loss: the expectations over the noise agree."""
    x0 = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma, lower = levels(64, "cpu")
    net = Free(tuple(x0.shape), "cpu")
    f = ConsistencyFunction(net, SIGMA_DATA, SIGMA_MIN)
    torch.manual_seed(0)
    hand = [by_hand(net, x0, sigma.float(), lower.float()).item() for _ in range(200)]
    torch.testing.assert_close(
        ours(f, x0, sigma, lower).item(),
        sum(hand) / len(hand),
        rtol=2e-2,
        atol=0,
    )


@pytest.mark.skipif(not hasattr(torch, "profiler"), reason="needs the profiler")
def test_extra_memory() -> None:
    """What is held at the peak beside x0 and the network's answer: half of eager's.

    Ours are the two inputs of the network, and then the gradient.
    """
    x0 = torch.randn(IMAGES, generator=torch.Generator().manual_seed(0))
    sigma, lower = levels(IMAGES[0], "cpu")
    net = Free(IMAGES, "cpu")
    f = ConsistencyFunction(net, SIGMA_DATA, SIGMA_MIN)
    fused = peak_bytes(lambda: step(ours, f, net, x0, sigma, lower))
    eager = peak_bytes(lambda: step(by_hand, net, net, x0, sigma.float(), lower.float()))
    print(f"\npeak: ours {fused / x0.nbytes:.1f}, eager {eager / x0.nbytes:.1f} times the batch")
    numbers = 64 * len(x0)  # weights, values and levels of each sample
    assert fused <= 0.5 * eager + numbers


def peak_bytes(call: Callable[[], None]) -> int:
    """The most bytes that a call holds at a time, on the CPU."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
