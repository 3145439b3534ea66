"""The processes that sample together, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Self, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others."""


class Team(AbstractContextManager["Team"]):
    """This process and the others; alone where WORLD_SIZE is not in the environment.

    What one of them cannot do ends all: the first that failed says why, the others leave with
    status 2.

    Attributes:
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self._mine = False

    def __enter__(self) -> Self:
        if self.world > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=PATIENCE)
            self._mine = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what there is once."""
        return self.rank == 0

    def device(self, name: str | None) -> torch.device:
        """The device of this process: a name, or None for a GPU where there is one.

        Raises:
            ValueError: no such device here.
        """
        if name is None:
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device must be such as 'cpu' or 'cuda'; got {name!r}") from error
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise ValueError("device must be 'cpu': this torch has no GPU; got " + repr(name))
            if ":" not in name:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            if device.index >= torch.cuda.device_count():
                raise ValueError(
                    f"device must be one of {torch.cuda.device_count()} GPUs; got {device}"
                )
            torch.cuda.set_device(device)
        return device

    def part(self, n: int) -> tuple[int, int]:
        """The first and the last id (exclusive) of n that are this process's."""
        return n * self.rank // self.world, n * (self.rank + 1) // self.world

    def together(self, work: Callable[[], T], *, first_only: bool = False) -> T | None:
        """What all do, or the first one alone, before any of them goes on.

        Raises:
            SystemExit: another process failed; it says why.
        """
        if self.world == 1:
            return work()
        error: Exception | None = None
        made = None
        if self.is_first or not first_only:
            try:
                made = work()
            except Exception as caught:
                error = caught
        failed = self.sums([float(r == self.rank and error is not None) for r in range(self.world)])
        if error is not None and not any(failed[: self.rank]):
            raise error
        if any(failed):
            raise SystemExit(2)
        return made

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes, number by number."""
        if self.world == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64)
        try:
            distributed.all_reduce(summed)
        except RuntimeError as error:  # it was stopped, or died
            raise SystemExit(2) from error
        found: list[float] = summed.tolist()
        return found
