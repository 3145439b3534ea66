"""What a trainer tells of its steps, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from cmsolvers.training.training_settings import TrainingSettings


class Training(Protocol):
    """What a monitor may ask a `Trainer`."""

    network: nn.Module
    averages: dict[str, Any]
    settings: TrainingSettings

    @property
    def step(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def history(self) -> list[float]: ...
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

    An OSError in one of these is a warning, and the run goes on; other errors end it.
    """

    def started(self, trainer: Training) -> None:
        """A call of `run` begins; `trainer.step` steps are done."""

    def stepped(self, report: StepReport) -> None:
        """A step is done; on a GPU many reports come at once, when losses are read."""

    def saved(self, path: Path) -> None:
        """A checkpoint is whole."""

    def ended(self, trainer: Training) -> None:
        """The call of `run` ends, for whatever reason."""
