"""Whole sampler runs with a model that costs nothing, against a plain eager loop."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from comparison import compare
from torch import Tensor

from cmsolvers import heun_pf_ode, karras_sigmas

SHAPE = (64, 3, 32, 32)


def plain_heun(denoiser: Any, x: Tensor, sigmas: list[float]) -> Tensor:
    """Algorithm 1 of Karras et al. (2022), line by line."""
    for sigma, following in pairwise(sigmas):
        level = torch.full((x.shape[0],), sigma)
        slope = (x - denoiser(x, level)) / sigma
        x_next = x + (following - sigma) * slope
        if following > 0:
            level = torch.full((x.shape[0],), following)
            slope_next = (x_next - denoiser(x_next, level)) / following
            x_next = x + (following - sigma) * (0.5 * slope + 0.5 * slope_next)
        x = x_next
    return x


def test_heun_18_steps(benchmark: Any, device: str) -> None:
    _compare_heun(benchmark, device, "", {"eager loop": 8} if device == "cpu" else {})


def test_heun_18_steps_warm(benchmark: Any, device: str) -> None:
    """The eager loop at its best: once a large block was freed, malloc keeps what the loop frees.

    Before, each temporary of the loop is mapped anew and costs page faults, or not, depending on
    what the process did earlier: so this file is run in a process of its own.
    """
    if device != "cpu":
        pytest.skip("about the allocator of the host")
    del_me = torch.ones(7_500_000)  # 30 MB; glibc looks no higher than 32
    del del_me
    _compare_heun(benchmark, device, ", malloc warm", {})


def _compare_heun(benchmark: Any, device: str, state: str, at_least: dict[str, float]) -> None:
    x = 80.0 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    answer = torch.zeros_like(x)
    sigmas = karras_sigmas(18)
    levels = sigmas.tolist()

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return answer

    # 17 predictors (2 reads, 1 write), 17 correctors (3 and 1), one last step
    compare(
        benchmark,
        f"18-step heun_pf_ode, free model, {list(SHAPE)}, {device}{state}",
        lambda: heun_pf_ode(denoiser, x, sigmas),
        {"eager loop": lambda: plain_heun(denoiser, x, levels)},
        moved=(17 * 7 + 3) * x.nbytes,
        device=device,
        at_least=at_least,
    )
