"""The losses of a run as a table."""

from __future__ import annotations

import math
import os
from pathlib import Path

from cmsolvers import checks as check
from cmsolvers.training.monitors.row_file import RowFile
from cmsolvers.training.monitors.window import Window, mean
from cmsolvers.training.reports import StepReport, Training

COLUMNS = ("step", "loss", "lr", "grad_norm", "seconds", "skipped")


class CSVLog:
    """A monitor that writes step, loss, lr, grad_norm, seconds and skipped as rows of a CSV file.

    `step` is the number of steps done. With `every` above 1 a row tells of all steps since the last
    one: mean loss and norm of the gradient of those that were not skipped, the last rate, seconds
    and skipped steps in all. A checkpoint ends a row too, so that rows of a run that goes on from
    it fit. Rows of later steps are removed then, and no step stands twice; steps that nobody logged
    get rows with losses alone, which checkpoints hold.

    Args:
        path: of the file; its folder is made.
        every: steps per row.

    Raises:
        TypeError, ValueError: every is no int, or below 1.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self.every = check.count("every", every)
        self._rows, self._window = RowFile(path, COLUMNS), Window(every)

    def started(self, trainer: Training) -> None:
        """Open the file for the steps to come.

        Raises:
            ValueError: the file is another table.
            OSError: it cannot be written.
        """
        last, step = self._rows.open(trainer.step), trainer.step
        self._window = Window(self.every)
        while last < step:
            end = min(step, (last // self.every + 1) * self.every)
            losses = [v for v in trainer.history[last:end] if math.isfinite(v)]
            self._rows.add([(end, repr(mean(losses)), None, None, None, None)])
            last = end

    def stepped(self, report: StepReport) -> None:
        """Write the row, where one is full."""
        if self._window.add(report):
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
        w, self._window = self._window, Window(self.every)
        if w.steps:
            norm = None if w.grad_norm is None else f"{w.grad_norm:.8g}"
            seconds = f"{w.seconds:.4g}"
            self._rows.add([(w.step, repr(w.loss), repr(w.lr), norm, seconds, w.skipped)])
