"""Distributions of levels that depend on the training step, also where a device holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmsolvers import noise

if TYPE_CHECKING:
    from cmsolvers.losses.level_distributions import UniformPairs


def step_of(seed: noise.SeedLike, draw: int) -> int | Tensor:
    """The training step: `draw`, or int64 [1] or [B] where the key holds it in its table."""
    if isinstance(seed, noise.Key) and seed.table is not None and seed.holds_draws:
        return seed.table[:, 2]
    return draw


class Rows:
    """Grids of pairs for all steps of a schedule, to be picked from on a device without a wait.

    Args:
        total: the last step whose number of levels may differ from that of the step before.
        levels: the number of levels of a step, which never falls.
        pairs: the grid of so many levels, and its probabilities.
    """

    def __init__(
        self, total: int, levels: Callable[[int], int], pairs: Callable[[int], UniformPairs]
    ) -> None:
        self._total, self._levels, self._pairs = total, levels, pairs
        self._made: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def pick(self, step: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(larger, smaller) levels [B] from uniform numbers [B] at steps [1] or [B]."""
        begins, grids, bounds = self._tables(u.device)
        stage = torch.searchsorted(begins, step.contiguous(), right=True) - 1
        place = (u[:, None] >= bounds[stage]).sum(1)
        rows = stage.expand(len(u))
        return grids[rows, place], grids[rows, place + 1]

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """First steps [K], grids [K, N], cumulative probabilities [K, N - 2] with 2 at the end."""
        if device not in self._made:
            begins = self._stages()
            counts = [self._levels(k) for k in begins]
            most = counts[-1]
            grids = torch.ones(len(counts), most, dtype=torch.float64, device="cpu")
            bounds = torch.full((len(counts), most - 2), 2.0, dtype=torch.float64, device="cpu")
            for k, n in enumerate(counts):
                made = self._pairs(n)
                grids[k, :n] = made._grid
                bounds[k, : n - 2] = made._cumulative
            first = torch.tensor(begins, dtype=torch.int64, device="cpu")
            self._made[device] = (first.to(device), grids.to(device), bounds.to(device))
        return self._made[device]

    def _stages(self) -> list[int]:
        """The steps at which the number of levels is new."""
        begins = [0]
        while self._levels(self._total) > self._levels(begins[-1]):
            now, low, high = self._levels(begins[-1]), begins[-1], self._total
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._levels(middle) == now else (low, middle)
            begins.append(high)
        return begins
