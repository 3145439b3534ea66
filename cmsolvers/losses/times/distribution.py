"""What every distribution of levels is: a function of uniform numbers and of the training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.losses.times.step_tables import step_of
from cmsolvers.processes.coordinates import KARRAS, Coordinates
from cmsolvers.processes.sde import Process

Drawn = TypeVar("Drawn", Tensor, tuple[Tensor, Tensor])
"""Levels t [B], or pairs (t, s) with s at most t."""

Pair: TypeAlias = tuple[Tensor, Tensor]


class Distribution(ABC, Generic[Drawn]):
    """Levels for losses: `times=` of every loss takes one.

    A new one is a frozen dataclass with the method `quantiles`. Say what its levels are: without
    `coordinates = "flow"` a level 0.9 is sigma = 0.9, which is t = 0.47 to a model in flow
    coordinates.

    Attributes:
        coordinates: what the levels are in, "karras" (if not said), "flow" or a `Process` such as
            `TrigFlow(0.5)`; losses carry them over to the model's at the same ratio of noise to
            data.
        numbers: uniform numbers per sample, at most 8.
    """

    coordinates: ClassVar[Coordinates | Process | str] = KARRAS
    numbers: ClassVar[int] = 1

    @abstractmethod
    def quantiles(self, u: Tensor, step: int | Tensor) -> Drawn:
        """Levels, float64 [B] each, for uniform numbers [B, numbers] at a training step.

        Either t alone or a pair (t, s) with s at most t, as the loss needs them. The step is an
        int, or int64 [1] or [B] on the device of u.
        """

    def sample(
        self,
        batch: int,
        seed: noise.SeedLike,
        *,
        draw: int = 0,
        device: torch.device | None = None,
    ) -> Drawn:
        """Levels of the training step `draw`, float64 [batch] each.

        Args:
            batch: B.
            seed: see `noise.key`; sample i gets the same levels in any batch.
            draw: the step.
            device: where they are made; None is that of the seed's tensors, or the CPU.
        """
        return self.quantiles(
            uniforms(batch, self.numbers, seed, draw, device), step_of(seed, draw)
        )


def uniforms(
    batch: int, count: int, seed: noise.SeedLike, draw: int, device: torch.device | None
) -> Tensor:
    """Random numbers in (0, 1) for levels, float64 [batch, count]."""
    return noise.uniform(
        (batch, count),
        seed,
        stream=noise.LEVELS,
        draw=draw,
        dtype=torch.float64,
        device=device or device_of(seed),
    )


def device_of(seed: noise.SeedLike) -> torch.device:
    """The device of a seed's tensors; a number: the CPU."""
    held = seed.table if isinstance(seed, noise.Key) else seed
    return held.device if isinstance(held, Tensor) else torch.device("cpu")
