"""What is kept of some steps, for one row that tells of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cmsolvers.training.reports import StepReport


@dataclass
class Window:
    """Sums over the steps since the last row.

    Attributes:
        every: steps per row.
        step: steps done after the last report.
        steps: reports in it.
        skipped: steps that were skipped.
        seconds: that the steps took.
        lr: learning rate of the last one.
        losses: of the steps that were not skipped.
        norms: of their gradients, where known.
    """

    every: int
    step: int = 0
    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0
    lr: float = math.nan
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def add(self, report: StepReport) -> bool:
        """Count a step; True where the window is full: after a multiple of `every` steps."""
        self.step, self.steps, self.lr = report.step + 1, self.steps + 1, report.lr
        self.seconds += report.seconds
        if report.skipped:
            self.skipped += 1
        else:
            self.losses.append(report.loss)
            if report.grad_norm is not None:
                self.norms.append(report.grad_norm)
        return self.step % self.every == 0

    @property
    def loss(self) -> float:
        """The mean loss; NaN where all steps were skipped."""
        return mean(self.losses)

    @property
    def grad_norm(self) -> float | None:
        """The mean norm of the gradient; None where nothing is known."""
        return mean(self.norms) if self.norms else None


def mean(values: Sequence[float]) -> float:
    """The mean of the values; NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan
