"""The losses of a run as a table in a file, which a run that goes on continues."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TextIO

from cmsolvers.runs.config import Config
from cmsolvers.training.checkpoints import replace_file
from cmsolvers.training.reports import Monitor, StepReport, Training

COLUMNS = ("step", "loss", "lr", "grad_norm", "seconds", "skipped")


def monitors_of(config: Config, out: Path) -> list[Monitor]:
    """Who follows the training of a configuration: in all processes the same, told in the first."""
    found: list[Monitor] = []
    if config.logging.csv:
        found.append(LossLog(out / "log.csv", config.logging.every))
    return found


class LossLog:
    """Writes one row per so many steps: steps done, and the means over those since the last row.

    Rows of steps that a killed run had done after its last checkpoint are removed when it goes on.

    Args:
        path: of the CSV file; its folder must exist.
        every: steps per row.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._file: TextIO | None = None
        self._rows: list[StepReport] = []

    def started(self, trainer: Training) -> None:
        kept = self._kept(trainer.step)
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(kept)
        replace_file(self.path, text.getvalue())
        self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115
        self._rows = []

    def stepped(self, report: StepReport) -> None:
        self._rows.append(report)
        if (report.step + 1) % self.every == 0:
            self._write()

    def saved(self, path: Path) -> None:
        if self._file is not None:
            self._file.flush()

    def ended(self, trainer: Training) -> None:
        if self._file is not None:
            self._write()
            self._file.close()
            self._file = None

    def _kept(self, step: int) -> list[list[str]]:
        """Rows of the file up to a step."""
        try:
            with open(self.path, encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))
        except (OSError, UnicodeDecodeError, csv.Error):
            return []
        whole = [row for row in rows[1:] if len(row) == len(COLUMNS) and row[0].isdecimal()]
        return [row for row in whole if int(row[0]) <= step]

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        if not rows or self._file is None:
            return
        norms = [row.grad_norm for row in rows if row.grad_norm is not None]
        losses = [row.loss for row in rows if not row.skipped]
        values = (
            rows[-1].step + 1,
            f"{_mean(losses):.6g}",
            f"{rows[-1].lr:.6g}",
            f"{_mean(norms):.6g}" if norms else "",
            f"{sum(row.seconds for row in rows):.4f}",
            sum(row.skipped for row in rows),
        )
        csv.writer(self._file, lineterminator="\n").writerow(values)
        self._file.flush()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
