"""The fused steps against the same formulas in eager and compiled torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import compare
from torch import Tensor

from cmsolvers import noise, ops

LARGE, IMAGE, TINY = (256, 3, 128, 128), (64, 3, 32, 32), (64, 2)


def euler_maruyama(x: Tensor, drift: Tensor) -> Tensor:
    return x + drift * 0.01 + (0.5 * 0.1) * torch.randn_like(x)


def predict(x: Tensor, denoised: Tensor) -> Tensor:
    return x + (x - denoised) / 2.0 * (1.5 - 2.0)


def correct(x: Tensor, denoised: Tensor, denoised_next: Tensor) -> Tensor:
    slope = (x - denoised) / 2.0
    predicted = x + slope * (1.5 - 2.0)
    return x + (0.5 * (1.5 - 2.0)) * (slope + (predicted - denoised_next) / 1.5)


def tensors(shape: tuple[int, ...], count: int, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device) for _ in range(count)]


def test_euler_maruyama_large(benchmark: Any, device: str) -> None:
    x, drift, out = tensors(LARGE, 3, device)
    compiled = torch.compile(euler_maruyama)
    compare(
        benchmark,
        f"Euler-Maruyama step with noise, {list(LARGE)}, out= given, {device}",
        lambda: ops.euler_maruyama_step(x, drift, 0.5, 0.01, seed=1, out=out),
        {"eager": lambda: euler_maruyama(x, drift), "compiled": lambda: compiled(x, drift)},
        moved=3 * x.nbytes,
        device=device,
        at_least={"eager": 18, "compiled": 18} if device == "cpu" else {},
    )


def test_euler_maruyama_image(benchmark: Any, device: str) -> None:
    x, drift = tensors(IMAGE, 2, device)
    compare(
        benchmark,
        f"Euler-Maruyama step with noise, {list(IMAGE)}, {device}",
        lambda: ops.euler_maruyama_step(x, drift, 0.5, 0.01, seed=1),
        {"eager": lambda: euler_maruyama(x, drift)},
        moved=3 * x.nbytes,
        device=device,
        calls=20,
        at_least={"eager": 7} if device == "cpu" else {},
    )


def test_heun_large(benchmark: Any, device: str) -> None:
    x, denoised, denoised_next, predicted, out = tensors(LARGE, 5, device)
    compiled = torch.compile(predict), torch.compile(correct)

    def ours() -> None:
        ops.heun_step(x, denoised, 2.0, 1.5, out=predicted)
        ops.heun_step(x, denoised, 2.0, 1.5, denoised_next, out=out)

    compare(
        benchmark,
        f"Heun predictor + corrector, {list(LARGE)}, {device}",
        ours,
        {
            "eager": lambda: (predict(x, denoised), correct(x, denoised, denoised_next)),
            "compiled": lambda: (compiled[0](x, denoised), compiled[1](x, denoised, denoised_next)),
        },
        moved=7 * x.nbytes,
        device=device,
        at_least={"eager": 12, "compiled": 1.5} if device == "cpu" else {},
    )


def test_normal(benchmark: Any, device: str) -> None:
    out = torch.empty(LARGE, device=device)
    row = compare(
        benchmark,
        f"noise.normal, 12.6 M values, {device}",
        lambda: noise.normal(LARGE, 1, out=out),
        {"torch.randn": lambda: torch.randn(LARGE, out=out)},
        moved=out.nbytes,
        device=device,
        at_least={"torch.randn": 4} if device == "cpu" else {},
    )
    if not benchmark.disabled:
        benchmark.extra_info["nanoseconds_a_value"] = row.seconds / out.numel() * 1e9


@pytest.mark.parametrize("step", ["euler_maruyama_step", "pf_ode_step", "heun_step"])
def test_tiny(benchmark: Any, device: str, step: str) -> None:
    x, a, b = tensors(TINY, 3, device)
    ours, eager = {
        "euler_maruyama_step": (
            lambda: ops.euler_maruyama_step(x, a, 0.5, 0.01, seed=1),
            lambda: euler_maruyama(x, a),
        ),
        "pf_ode_step": (lambda: ops.pf_ode_step(x, a, 2.0, 1.5), lambda: predict(x, a)),
        "heun_step": (lambda: ops.heun_step(x, a, 2.0, 1.5, b), lambda: correct(x, a, b)),
    }[step]
    compare(
        benchmark,
        f"{step}, {list(TINY)}, {device}",
        ours,
        {"eager": eager},
        moved=3 * x.nbytes,
        device=device,
        calls=2000,
        at_least={"eager": 6} if device == "cpu" else {},
    )
