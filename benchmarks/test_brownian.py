"""Brownian noise: whole dpmpp_sde runs with a model that costs nothing, and single queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import compare
from torch import Tensor

from cmsolvers import karras_sigmas, noise
from cmsolvers.solvers.dpmpp_sde import dpmpp_sde

SHAPE = (64, 3, 32, 32)


def tree_noise(
    x: Tensor, sigmas: list[float], time: Callable[[float], float]
) -> Callable[[float, float], Tensor]:
    """The noise sampler of a torchsde BrownianTree for the whole batch, as samplers use it."""
    torchsde = pytest.importorskip("torchsde")
    ends = sorted((time(sigmas[0]), time(min(s for s in sigmas if s > 0))))
    tree = torchsde.BrownianTree(ends[0], torch.zeros_like(x), ends[1], entropy=5)

    def sampler(sigma: float, sigma_next: float) -> Tensor:
        a, b = time(sigma), time(sigma_next)
        sign = 1.0 if a < b else -1.0
        increment: Tensor = tree(min(a, b), max(a, b))
        return increment * (sign / math.sqrt(abs(b - a)))

    return sampler


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
def test_dpmpp_sde_18_steps(benchmark: Any) -> None:
    pytest.importorskip("torchsde")
    x = 80.0 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    answer = torch.zeros_like(x)
    sigmas = karras_sigmas(18)
    levels = sigmas.tolist()

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return answer

    def on_tree(time: Callable[[float], float]) -> Tensor:
        return dpmpp_sde(denoiser, x, sigmas, noise_sampler=tree_noise(x, levels, time))  # type: ignore[no-any-return]

    # 34 stages that read x, D and noise and write, and the noise written; one last step
    compare(
        benchmark,
        f"18-step dpmpp_sde, free model, {list(SHAPE)}, cpu",
        lambda: dpmpp_sde(denoiser, x, sigmas, seed=5),
        {
            "torchsde tree": lambda: on_tree(lambda sigma: sigma),
            "torchsde tree in ln sigma": lambda: on_tree(lambda sigma: -math.log(sigma)),
        },
        moved=(34 * 5 + 2) * x.nbytes,
        rounds=5,
        at_least={"torchsde tree": 30, "torchsde tree in ln sigma": 30},
    )


@pytest.mark.parametrize("spacing", [0.01, None])
def test_query(benchmark: Any, device: str, spacing: float | None) -> None:
    path = noise.BrownianPath(5, 0.0, 1.0, SHAPE, spacing=spacing, device=device)
    out = path(0.0, 1.0)
    compare(
        benchmark,
        f"BrownianPath, depth {path.depth}, {list(SHAPE)}, {device}",
        lambda: path.unit(0.31, 0.3456, out=out),
        {"one fresh normal": lambda: noise.normal(SHAPE, 5, out=out)},
        moved=out.nbytes,
        device=device,
        calls=5,
    )
