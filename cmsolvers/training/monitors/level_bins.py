"""The loss by noise level: which levels are learnt, and which are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.monitors.row_file import RowFile
from cmsolvers.training.reports import StepReport, Training

COLUMNS = ("step", "first", "low", "high", "samples", "loss")
_DECADES = 12
"""Levels beyond 1e-12 and 1e12 count to the outermost bins."""
_AT_ONCE = 1 << 16
"""Samples that are kept before they are counted."""


class Bin(NamedTuple):
    """Samples whose level is in [low, high); low is 0 for levels that are 0 or below."""

    low: float
    high: float
    samples: int
    loss: float


class LevelSums:
    """Sums of losses in bins of levels, the same number in each factor of ten, at fixed places.

    Args:
        per_decade: bins in a factor of ten.
    """

    def __init__(self, per_decade: int = 4) -> None:
        self.per_decade = check.count("per_decade", per_decade, most=100)
        self.clear()

    def clear(self) -> None:
        """Forget all samples."""
        size = 2 * _DECADES * self.per_decade + 1
        self._counts, self._sums = np.zeros(size, np.int64), np.zeros(size)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._samples = 0  # of those that are pending

    def add(self, report: StepReport) -> None:
        """Count the samples of a step whose terms are finite; those of a skipped step do not."""
        if report.skipped or report.levels is None or report.per_sample is None:
            return
        # Many steps at once: a single one costs as much as hundreds.
        self._pending.append((report.levels, report.per_sample))
        self._samples += report.levels.numel()
        if self._samples >= _AT_ONCE:
            self._count()

    def _count(self) -> None:
        if not self._pending:
            return
        pending, self._pending, self._samples = self._pending, [], 0
        levels, losses = (
            torch.cat([pair[k].reshape(-1).double() for pair in pending]).numpy() for k in (0, 1)
        )
        good = np.isfinite(levels) & np.isfinite(losses)
        levels, losses = levels[good], losses[good]
        above = levels > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            # The small number: rounding would put levels that are edges on either side.
            place = np.floor(np.log10(levels) * self.per_decade + 1e-9)
        place = np.where(above, place, 0.0) + _DECADES * self.per_decade
        inside = np.clip(place, 0, len(self._counts) - 2).astype(np.int64)
        index = np.where(above, inside + 1, 0)
        self._counts += np.bincount(index, minlength=len(self._counts))
        self._sums += np.bincount(index, losses, minlength=len(self._sums))

    def bins(self) -> Iterator[Bin]:
        """Mean losses of the bins that are not empty, from low levels to high ones."""
        self._count()
        for index in np.flatnonzero(self._counts):
            low, high = self.edge(int(index)), self.edge(int(index) + 1)
            count = int(self._counts[index])
            yield Bin(low, high, count, float(self._sums[index]) / count)

    def edge(self, index: int) -> float:
        """Where a bin begins; bin 0 is for levels that are 0 or below."""
        if index == 0:
            return 0.0
        return float(f"{10.0 ** ((index - 1) / self.per_decade - _DECADES):.4g}")


class LevelBins:
    """A monitor that writes the mean loss by noise level as rows of a CSV file.

    Each row is of one bin and of the steps after `first` up to `step`; where a loss gives a number
    alone, and no `LossOutput`, there are none. A checkpoint ends a window too, so rows of a run
    that goes on from it fit; rows of later steps are removed then.

    Args:
        path: of the file; its folder is made.
        window: steps per window.
        per_decade: bins in a factor of ten of the level.

    Raises:
        TypeError, ValueError: no ints, or out of range.
    """

    def __init__(
        self, path: str | os.PathLike[str], window: int = 200, per_decade: int = 4
    ) -> None:
        self.window = check.count("window", window)
        self._sums, self._rows = LevelSums(per_decade), RowFile(path, COLUMNS)
        self._first = self._step = 0

    def started(self, trainer: Training) -> None:
        """Open the file for the steps to come.

        Raises:
            ValueError: the file is another table.
            OSError: it cannot be written.
        """
        self._rows.open(trainer.step)
        self._sums.clear()
        self._first = self._step = trainer.step

    def stepped(self, report: StepReport) -> None:
        """Count the samples; write the rows of a full window."""
        self._sums.add(report)
        self._step = report.step + 1
        if self._step % self.window == 0:
            self._write()

    def saved(self, path: Path) -> None:
        """Have all rows of the checkpoint's steps on the disk."""
        self._write()
        self._rows.sync()

    def ended(self, trainer: Training) -> None:
        """Close the file."""
        self._write()
        self._rows.close()

    def _write(self) -> None:
        rows = [
            (self._step, self._first, b.low, b.high, b.samples, repr(b.loss))
            for b in self._sums.bins()
        ]
        self._rows.add(rows)
        self._sums.clear()
        self._first = self._step


def level_name(bin: Bin) -> str:
    """A bin's name, such as "0.1 to 0.18"."""
    return f"{bin.low:.2g} to {bin.high:.2g}" if bin.low else "0"
