"""The course of a run for TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cmsolvers import checks as check
from cmsolvers.training.monitors.level_bins import LevelSums, level_name
from cmsolvers.training.monitors.window import Window
from cmsolvers.training.reports import StepReport, Training

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog:
    """A monitor that writes events: loss, lr, grad_norm, seconds per step, and loss by noise level.

    Values are means over the steps since the last ones. When a run goes on from an earlier step,
    TensorBoard no longer shows what an earlier process wrote of later steps.

    Args:
        path: the folder of the events.
        every: steps per value; each value takes about 0.1 ms.
        window: steps per value of the loss by level, 0 for none.
        per_decade: bins in a factor of ten of the level.

    Raises:
        TypeError, ValueError: no ints, or out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int = 50,
        window: int = 500,
        per_decade: int = 4,
    ) -> None:
        self.path, self.every = Path(path), check.count("every", every)
        self.window = check.count("window", window, least=0)
        self._window, self._levels = Window(self.every), LevelSums(per_decade)
        self._writer: SummaryWriter | None = None
        self._skipped = 0

    def started(self, trainer: Training) -> None:
        """Open a file of events.

        Raises:
            ImportError: tensorboard is not installed.
            OSError: nothing can be written.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.path), purge_step=trainer.step + 1)
        self._window, self._skipped = Window(self.every), trainer.skipped
        self._levels.clear()

    def stepped(self, report: StepReport) -> None:
        """Write the values of full windows."""
        if self.window:
            self._levels.add(report)
            if (report.step + 1) % self.window == 0:
                self._write_levels(report.step + 1)
        if self._window.add(report):
            self._write()

    def saved(self, path: Path) -> None:
        """Have everything in the file."""
        self._write()
        if self._writer is not None:
            self._writer.flush()

    def ended(self, trainer: Training) -> None:
        """Close the file."""
        self._write()
        self._write_levels(trainer.step)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self) -> None:
        w, self._window = self._window, Window(self.every)
        if not w.steps:
            return
        self._skipped += w.skipped
        if w.losses:
            self._value("training/loss", w.loss, w.step)
        if w.grad_norm is not None:
            self._value("training/grad_norm", w.grad_norm, w.step)
        self._value("training/lr", w.lr, w.step)
        self._value("training/seconds_per_step", w.seconds / w.steps, w.step)
        if self._skipped:
            self._value("training/skipped", self._skipped, w.step)

    def _write_levels(self, step: int) -> None:
        for bin in self._levels.bins():
            self._value(f"loss_by_level/{level_name(bin)}", bin.loss, step)
        self._levels.clear()

    def _value(self, name: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)
