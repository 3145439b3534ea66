"""A picture of how a training goes, drawn again and again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cmsolvers import checks as check
from cmsolvers.training.checkpoints import replace_file
from cmsolvers.training.monitors.logged_table import LoggedTable
from cmsolvers.training.monitors.loss_figure import loss_figure
from cmsolvers.training.reports import StepReport, Training

SHARE = 0.02
"""Of the time of a run that drawing may take."""


class LossPicture:
    """A monitor that draws what `CSVLog` and `LevelBins` have written, as a PNG file.

    Loss (each row light, their running mean dark, skipped steps marked), loss by noise level, and
    learning rate. It is drawn every so many steps, unless that took more than 2 % of the time, and
    at the end of each run.

    Args:
        path: of the picture; its folder is made.
        log: path of a `CSVLog`, which comes first among the monitors.
        levels: path of a `LevelBins`, likewise; None: no such panel.
        every: steps between pictures.
        title: above the picture.

    Raises:
        TypeError, ValueError: every is no int, or below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        log: str | os.PathLike[str],
        levels: str | os.PathLike[str] | None = None,
        every: int = 500,
        title: str = "",
    ) -> None:
        self.path, self.every, self.title = Path(path), check.count("every", every), title
        self._log = LoggedTable(Path(log))
        self._levels = None if levels is None else LoggedTable(Path(levels))
        self._next = 0.0

    def started(self, trainer: Training) -> None:
        """Find out whether pictures can be drawn.

        Raises:
            ImportError: matplotlib is not installed.
        """
        import matplotlib.figure  # noqa: F401

    def stepped(self, report: StepReport) -> None:
        """Draw, where it is time to."""
        if (report.step + 1) % self.every == 0 and time.perf_counter() >= self._next:
            begun = time.perf_counter()
            self.draw()
            took = time.perf_counter() - begun
            self._next = begun + took / SHARE

    def saved(self, path: Path) -> None:
        """Nothing."""

    def ended(self, trainer: Training) -> None:
        """Draw the whole course."""
        self.draw()

    def draw(self) -> None:
        """Draw what the tables hold now; nothing where there is no log.

        Raises:
            ImportError: matplotlib is not installed.
            OSError: a table cannot be read, or the picture not written.
        """
        log = self._log.read()
        if not len(log.get("step", ())):
            return
        levels = {} if self._levels is None else self._levels.read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, loss_figure(log, levels, self.title))
