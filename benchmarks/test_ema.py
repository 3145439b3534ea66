"""Moving averages in one pass against `torch._foreach_lerp_`, and a captured training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import compare
from torch import Tensor, nn

from cmsolvers.ops import ema_update
from cmsolvers.training import EMA, capture_step, update_averages

DECAYS = (0.9999, 0.999, 0.99)


def tensors(device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """10^7 numbers on the CPU, 10^8 on a GPU, in the sizes of a U-Net's layers."""
    unit = 512 if device == "cpu" else 1620
    shapes = [(unit, unit, 3, 3)] * 4 + [(unit,)] * 60 + [(unit, unit)] * 2
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).to(device, dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_averages(benchmark: Any, device: str, k: int, dtype: torch.dtype) -> None:
    values = tensors(device, dtype)
    mine = [[t.float() * 0.5 for t in values] for _ in range(k)]
    theirs = [[t.clone() for t in one] for one in mine]
    weights = [1.0 - mu for mu in DECAYS[:k]]

    def each() -> None:
        wide = values if dtype is torch.float32 else [v.float() for v in values]
        for average, weight in zip(theirs, weights, strict=True):
            torch._foreach_lerp_(average, wide, weight)

    count = sum(t.numel() for t in values)
    compare(
        benchmark,
        f"{k} EMAs of {count / 1e6:.0f} M {str(dtype).removeprefix('torch.')} weights, {device}",
        lambda: ema_update(mine, values, weights),
        {"foreach": each},
        moved=count * (values[0].element_size() + 8 * k),
        device=device,
        at_least={"foreach": 1.25} if k == 3 else {"foreach": 0.95},
    )


def network(device: str) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(2, 64)]
    for _ in range(4):
        layers += [nn.SiLU(), nn.Linear(64, 64)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Linear(64, 2)).to(device)


@torch.no_grad()
def follow(emas: list[EMA[nn.Module]], net: nn.Module) -> None:
    """The averages as one writes them in plain torch."""
    for ema in emas:
        mine, theirs = list(ema.module.parameters()), list(net.parameters())
        torch._foreach_lerp_(mine, theirs, 1.0 - ema.next_decay())


def test_small_network(benchmark: Any, device: str) -> None:
    """Where launches and Python decide."""
    net = network(device)
    emas, others = ([EMA(net, mu) for mu in DECAYS] for _ in range(2))

    compare(
        benchmark,
        f"3 EMAs of an MLP with 12 tensors, {device}",
        lambda: update_averages(emas, net),
        {"foreach": lambda: follow(others, net)},
        moved=sum(7 * p.nbytes for p in net.parameters()),
        device=device,
        calls=200,
    )


def test_training_step(benchmark: Any, device: str) -> None:
    """The same step captured and in eager torch; on the CPU there is no graph."""
    x = torch.randn(1024, 2, device=device)

    def made() -> tuple[nn.Module, torch.optim.Optimizer, list[EMA[nn.Module]]]:
        net = network(device)
        optimizer = torch.optim.AdamW(
            net.parameters(),
            lr=torch.tensor(1e-3, device=device),
            fused=True,
            capturable=True,
        )
        return net, optimizer, [EMA(net, mu) for mu in DECAYS]

    net, optimizer, emas = made()
    step = capture_step(
        lambda batch, k: net(batch).square().mean(), net, optimizer, x, clip=1.0, averages=emas
    )
    other, eager_optimizer, eager_emas = made()

    def eager() -> None:
        eager_optimizer.zero_grad()
        other(x).square().mean().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        eager_optimizer.step()
        follow(eager_emas, other)

    for k in range(5):
        step(x, k)
    compare(
        benchmark,
        f"training step of an MLP, [1024, 2], with clipping and 3 EMAs, {device}",
        lambda: step(x, 5, 1e-3),
        {"eager": eager},
        moved=sum(20 * p.nbytes for p in net.parameters()),
        device=device,
        calls=20,
        at_least={"eager": 5} if device == "cuda" else {},
    )
