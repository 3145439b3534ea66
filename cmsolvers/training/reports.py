"""What a trainer tells of its steps, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from cmsolvers.training.training_settings import TrainingSettings


class Training(Protocol):
    """What a monitor may ask a `Trainer`."""

    network: nn.Module
    averages: dict[str, Any]
    decays: dict[str, Any]
    settings: TrainingSettings

    @property
    def step(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def history(self) -> list[float]: ...
    @property
    def rank(self) -> int: ...
    @property
    def sharded(self) -> bool: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class StepReport:
    """One step of a training.

    Attributes:
        step: its number, counted from 0.
        loss: the mean over the global batch, before the step; NaN or infinite in a skipped step.
        lr: learning rate of the first group of parameters.
        grad_norm: of the mean gradient before clipping; None where nothing asked for it.
        seconds: from the end of the step before, on a device of the launches alone.
        skipped: whether nothing was changed, because loss or gradient were not finite.
        levels: where the student stood, float64 [B] of the global batch, on the CPU; None where
            the loss gave a number alone.
        per_sample: terms of the loss, [B], likewise.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float | None
    seconds: float
    skipped: bool
    levels: Tensor | None = None
    per_sample: Tensor | None = None


class Monitor(Protocol):
    """Something that follows a training; called in the first process alone.

    One that fails is left out from then on, with a warning, and the run goes on. Only `started` may
    end it by an error that is neither OSError nor ImportError, before the first step.
    """

    def started(self, trainer: Training) -> None:
        """A call of `run` begins; `trainer.step` steps are done.

        What an earlier run wrote of later steps is void: they will be done again.
        """

    def stepped(self, report: StepReport) -> None:
        """A step is done; on a GPU many reports come at once, when losses are read."""

    def saved(self, path: Path) -> None:
        """A checkpoint is whole."""

    def ended(self, trainer: Training) -> None:
        """The call of `run` ends, for whatever reason."""


@runtime_checkable
class PeriodicMonitor(Monitor, Protocol):
    """A monitor that looks at networks and averages every so many steps, in all processes.

    All of them are needed where weights are sharded: a weight is whole, and a network can be
    called, only when each process asks. What can fail in one process (writing) comes last.
    """

    every: int

    def reached(self, trainer: Training) -> None:
        """`trainer.step` is a multiple of `every`, or the last of the settings' steps.

        Averages are of that step, and all reports were handed out; on a GPU this has waited.
        """
