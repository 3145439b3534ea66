"""The network that every recipe trains, and the count of its calls."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.demo.loss_benchmark.entry import Model
from cmsolvers.demo.loss_benchmark.setting import Setting
from cmsolvers.training.networks import LevelEmbedding, ResidualBlock

_EMBEDDING = 32


class FewStepMLP(nn.Module):
    """A residual MLP F(x, c_noise) or F(x, c_noise, c_noise_end); F = 0 before training.

    The time embeddings of start and end, each of its own layers, are added.

    Args:
        size: elements per sample.
        width: of the residual stream.
        blocks: how many residual blocks.
        two_times: whether it takes a second time.
    """

    def __init__(self, size: int, width: int, blocks: int, two_times: bool) -> None:
        super().__init__()
        self.times = nn.ModuleList(LevelEmbedding(_EMBEDDING) for _ in range(1 + two_times))
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, _EMBEDDING, 0.0) for _ in range(blocks))
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, *times: Tensor) -> Tensor:
        """[B, d] and one or two times [B] -> [B, d]."""
        if len(times) != len(self.times):
            raise TypeError(f"network takes {len(self.times)} times; got {len(times)}")
        level = sum(
            (embed(time.to(x.dtype)) for embed, time in zip(self.times, times, strict=True)),
            start=x.new_zeros(()),
        )
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, level)
        result: Tensor = self.last(hidden)
        return result


class Counter:
    """Counts rows that networks were called on; copies of a network count on the same counter."""

    def __init__(self) -> None:
        self.rows = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Counter:
        return self

    def count(self, *inputs: Tensor) -> None:
        """A call: its rows, twice where an input carries a tangent (JVP)."""
        tangent = any(check.carries_tangent(value) for value in inputs)
        self.rows += inputs[0].shape[0] * (2 if tangent else 1)


class Counted(nn.Module):
    """A network whose calls are counted."""

    def __init__(self, network: nn.Module, counter: Counter) -> None:
        super().__init__()
        self.network, self.counter = network, counter

    def forward(self, x: Tensor, *times: Tensor, **extra_args: Any) -> Tensor:
        """What the network gives."""
        self.counter.count(x, *times)
        result: Tensor = self.network(x, *times, **extra_args)
        return result


class CountedTeacher:
    """A teacher whose calls are counted; its coordinates are those of the denoiser inside."""

    training = False

    def __init__(self, denoiser: Model, counter: Counter) -> None:
        self.denoiser, self.counter = denoiser, counter
        self.coordinates = getattr(denoiser, "coordinates", None)

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """What the denoiser gives."""
        self.counter.count(x)
        return self.denoiser(x, level)


def build(size: int, setting: Setting, two_times: bool, seed: int, counter: Counter) -> Counted:
    """The counted network, whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        network = FewStepMLP(size, setting.width, setting.blocks, two_times)
    return Counted(network, counter)


def uncounted(network: Counted) -> nn.Module:
    """A copy in evaluation mode that counts nothing, to be sampled from."""
    return copy.deepcopy(network.network).eval().requires_grad_(False)
