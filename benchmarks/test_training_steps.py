"""Consistency training of an MLP, [1024, 2], with AdamW: whole steps, by hand and by us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comparison import compare
from test_losses import SIGMA_DATA, SIGMA_MIN, by_hand, levels
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction
from cmsolvers.losses import ict
from cmsolvers.training import capture_step

BATCH = 1024


class Net(nn.Module):
    """A state of two numbers and its time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        made: Tensor = self.layers(torch.cat((x, c_noise[:, None]), dim=1))
        return made


class Course:
    """Networks and steps on one batch of a device."""

    def __init__(self, device: str) -> None:
        self.device = device
        x0 = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(0))
        self.x0, self.levels = x0.to(device), levels(BATCH, device)
        self.times = (0.25 * self.levels[0].log()).float()

    def made(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = Net().to(self.device)
        lr = torch.tensor(1e-4, device=self.device)
        return net, torch.optim.AdamW(net.parameters(), lr=lr, fused=True, capturable=True)

    def step(self, loss: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
        net, optimizer = self.made()

        def run() -> None:
            optimizer.zero_grad()
            loss(net).backward()
            optimizer.step()

        return run

    def alone(self, net: nn.Module) -> Tensor:
        """Both passes of the network, and no loss."""
        with torch.no_grad():
            net(self.x0, self.times)
        mean: Tensor = net(self.x0, self.times).mean()
        return mean

    def written(self, net: nn.Module) -> Tensor:
        """The loss by hand, in eager torch."""
        high, low = self.levels
        return by_hand(lambda x: net(x, self.times), self.x0, high.float(), low.float())

    def ours(self, net: nn.Module) -> Tensor:
        f = ConsistencyFunction(net, SIGMA_DATA, SIGMA_MIN)
        return ict(f, self.x0, key=1, step=0, levels=self.levels).loss

    def captured(self) -> Callable[[], Tensor]:
        net, optimizer = self.made()
        f = ConsistencyFunction(net, SIGMA_DATA, SIGMA_MIN)
        step = capture_step(
            lambda batch, k: ict(f, batch, key=1, step=k, levels=self.levels).loss,
            net,
            optimizer,
            self.x0,
        )
        for k in range(5):
            step(self.x0, k)
        return lambda: step(self.x0, 5, 1e-4)


def test_step(benchmark: Any, device: str) -> None:
    course = Course(device)
    alone = "network and optimiser alone"
    compare(
        benchmark,
        f"training step of an MLP, [1024, 2], {device}",
        course.step(course.ours),
        {
            "eager": course.step(course.written),
            "compiled loss": course.step(torch.compile(course.written)),
            alone: course.step(course.alone),
        },
        moved=course.x0.nbytes,
        device=device,
        calls=20,
        at_most={alone: 1.15} if device == "cuda" else {},
    )


def test_captured_step(benchmark: Any, device: str) -> None:
    course = Course(device)
    compare(
        benchmark,
        f"the same step captured, {device}",
        course.captured(),
        {"eager": course.step(course.written)},
        moved=course.x0.nbytes,
        device=device,
        calls=20,
        at_least={"eager": 5} if device == "cuda" else {},
    )
