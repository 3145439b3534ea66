"""Who is told of a training: monitors, none of which can end a run that is under way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch

from cmsolvers.training.reports import Monitor, PeriodicMonitor, Training
from cmsolvers.training.step.placement import Placement


class Audience:
    """The monitors of a run.

    One that fails is left out from then on, with one warning.

    Args:
        monitors: in the order in which they are told.
        placement: where the run is; the first process tells.
    """

    def __init__(self, monitors: Sequence[Monitor], placement: Placement) -> None:
        self._monitors, self._placement = list(monitors), placement
        self._periodic = [m for m in self._monitors if isinstance(m, PeriodicMonitor)]
        self._left_out: set[int] = set()

    def __len__(self) -> int:
        """How many there are, the same number in all processes."""
        return len(self._monitors)

    def started(self, trainer: Training) -> None:
        """Tell that a run begins, while mistakes cost nothing yet.

        Raises:
            Exception: of a monitor, in the first process; but not that a file cannot be written or
                a package is missing.
            OSError: in other processes, where the first one failed.
            ValueError: processes have different numbers of monitors.
        """
        if self._placement.world > 1:
            # They exchange reports for monitors: a process without any would never answer.
            count = torch.tensor([float(len(self))], device=self._placement.device)
            total, world = int(self._placement.sum(count)), self._placement.world
            if total != world * len(self):
                raise ValueError(
                    "monitors must be given to all processes, the same ones; "
                    f"this one has {len(self)}, all {world} have {total}"
                )
        with self._placement.together():
            if self._placement.rank > 0:
                return
            for monitor in self._present():
                try:
                    monitor.started(trainer)
                except (OSError, ImportError) as error:
                    self._leave_out(monitor, error, trainer.step)

    def tell(self, what: Callable[[Monitor], None], step: int) -> None:
        """Tell something, in the first process."""
        if self._placement.rank > 0:
            return
        for monitor in self._present():
            try:
                what(monitor)
            except Exception as error:
                self._leave_out(monitor, error, step)

    def is_due(self, step: int, last: bool) -> bool:
        """Whether `reached` has something to do after so many steps."""
        return any(_is_due(m, step, last) for m in self._periodic)

    def reached(self, trainer: Training, last: bool) -> None:
        """Let those look at the training whose step it is, in all processes."""
        for monitor in self._periodic:
            if id(monitor) in self._left_out or not _is_due(monitor, trainer.step, last):
                continue
            failure: Exception | None = None
            try:
                monitor.reached(trainer)
            except Exception as error:
                failure = error
            if self._placement.world > 1:
                count = torch.tensor([float(failure is not None)], device=self._placement.device)
                if float(self._placement.sum(count)):
                    self._left_out.add(id(monitor))
            if failure is not None:
                self._leave_out(monitor, failure, trainer.step)

    def _present(self) -> list[Monitor]:
        return [m for m in self._monitors if id(m) not in self._left_out]

    def _leave_out(self, monitor: Monitor, error: Exception, step: int) -> None:
        self._left_out.add(id(monitor))
        text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        warnings.warn(
            f"{type(monitor).__name__} failed at step {step}, the run goes on without it: {text}",
            RuntimeWarning,
            stacklevel=4,
        )


def _is_due(monitor: PeriodicMonitor, step: int, last: bool) -> bool:
    return last or step % monitor.every == 0
