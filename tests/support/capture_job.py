"""A small training to capture, and the same written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.training import EMA, CapturedStep, capture_step, power_decay, update_averages

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Job:
    """A small training with everything in it: dropout, a target average, a counter in a buffer."""

    def __init__(self, device: str = "cpu", dropout: float = 0.2) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(4, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 4)
        ).to(device)
        self.optimizer = adamw(self.network)
        self.target = EMA(self.network, 0.9)
        self.averages = {"target": self.target, "wide": EMA(self.network, power_decay(0.1))}
        self.device = device

    def batch(self, k: int) -> dict[str, Tensor]:
        x = noise.normal((16, 4), seed=1, draw=k, device=self.device)
        return {"x": x, "scale": torch.tensor(1.0 + 0.1 * k, device=self.device)}

    def loss(self, batch: dict[str, Tensor], step: Tensor) -> Tensor:
        aim = self.target.module(batch["x"]).detach() + 0.1 * step.to(torch.float32).sqrt()
        return batch["scale"] * (self.network(batch["x"]) - aim).square().mean()

    def captured(self, **options) -> CapturedStep:
        arguments = {"clip": 0.5, "averages": self.averages, **options}
        return capture_step(self.loss, self.network, self.optimizer, self.batch(0), **arguments)

    def state(self) -> list[Tensor]:
        nets = [self.network, *(ema.module for ema in self.averages.values())]
        found = [t for net in nets for t in net.state_dict().values()]
        found += [
            t for entries in self.optimizer.state_dict()["state"].values() for t in entries.values()
        ]
        return [t.detach().cpu().clone() for t in found]

    def run(self, step: CapturedStep, count: int, first: int = 0) -> list[Tensor]:
        losses = []
        for k in range(first, first + count):
            torch.manual_seed(100 + k)
            losses.append(step(self.batch(k), k, rate(k)))
        return losses


def rate(k: int) -> float:
    return 1e-2 * math.cos(0.05 * k)


def adamw(network: nn.Module, **options) -> torch.optim.Optimizer:
    device = next(network.parameters()).device
    given = {"lr": torch.tensor(1e-2, device=device), "fused": True, "capturable": True}
    return torch.optim.AdamW(network.parameters(), **(given | options))


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


def by_hand(job: Job, count: int) -> list[Tensor]:
    losses = []
    for k in range(count):
        torch.manual_seed(100 + k)
        job.optimizer.param_groups[0]["lr"].fill_(rate(k))
        job.optimizer.zero_grad()
        loss = job.loss(job.batch(k), torch.tensor([k], device=job.device))
        loss.backward()
        nn.utils.clip_grad_norm_(job.network.parameters(), 0.5)
        job.optimizer.step()
        update_averages(job.averages.values(), job.network)
        losses.append(loss.detach())
    return losses
