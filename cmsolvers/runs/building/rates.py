"""Learning rates as functions of the step, from plain settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cmsolvers import checks as check
from cmsolvers.training.named_options import (
    IMPORT,
    called_with,
    check_options,
    imported,
    known_name,
    option_names,
    table_of,
)

Schedule: TypeAlias = Callable[[int], float]
"""Factor of the learning rate at step k, counted from 0."""


@dataclass(frozen=True)
class Rise:
    """A factor of the learning rate that rises in equal steps to 1 over the first steps of a run.

    Args:
        total: training steps in all.
        warmup: share of the steps in which the rate rises, in [0, 1), or their number from 1 on.

    Raises:
        TypeError, ValueError: a number of the wrong kind or out of range.
    """

    total: int
    warmup: float = 0.05

    def __post_init__(self) -> None:
        check.count("total", self.total)
        check.non_negative("warmup", self.warmup)

    @property
    def rise(self) -> int:
        """In how many steps it rises, at least 1."""
        steps = self.warmup if self.warmup >= 1 else self.warmup * self.total
        return max(1, round(steps))

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        if step < self.rise:
            return (step + 1) / self.rise
        return self.share(step)

    def share(self, step: int) -> float:
        """The factor after the rise."""
        return 1.0

    def progress(self, step: int) -> float:
        """How far a step is from the end of the rise to the end of the run, in [0, 1]."""
        return min(1.0, (step - self.rise) / max(1, self.total - self.rise))


class Constant(Rise):
    """1 to the end."""


@dataclass(frozen=True)
class Cosine(Rise):
    """Half a cosine from 1 down to `last`."""

    last: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check.non_negative("last", self.last)

    def share(self, step: int) -> float:
        fallen = 0.5 * (1.0 + math.cos(math.pi * self.progress(step)))
        return self.last + (1.0 - self.last) * fallen


@dataclass(frozen=True)
class Linear(Rise):
    """A line from 1 down to `last`."""

    last: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check.non_negative("last", self.last)

    def share(self, step: int) -> float:
        return 1.0 + (self.last - 1.0) * self.progress(step)


@dataclass(frozen=True)
class InverseSquareRoot(Rise):
    """1 up to step `reference`, then sqrt(reference / step).

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), eq. 67: 1 / sqrt(max(t / t_ref, 1)).
    """

    reference: int = 70_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check.count("reference", self.reference)

    def share(self, step: int) -> float:
        return 1.0 / math.sqrt(max(step / self.reference, 1.0))


RATES: dict[str, type[Rise]] = {
    "constant": Constant,
    "cosine": Cosine,
    "inverse_sqrt": InverseSquareRoot,
    "linear": Linear,
}
"""Schedules by name."""


def schedule_of(value: object, total: int) -> Schedule:
    """The factor of the learning rate as a function of the step.

    Args:
        value: "constant", "cosine", "linear" or "inverse_sqrt", or a table with `warmup` (a share
            of the run below 1, or a number of steps), `last` (of "cosine" and "linear") and
            `reference` (a step, of "inverse_sqrt"); or "import:package.module:function", called
            with total and the table's options.
        total: training steps in all.

    Raises:
        ImportError, TypeError, ValueError: an unknown name or option, a number out of range.
    """
    name, options = table_of("schedule", value)
    if name.startswith(IMPORT):
        made = imported("schedule", name)
    else:
        made = RATES[known_name("schedule", name, RATES)]
        known = [known for known in option_names(made) if known not in ("total",)]
        check_options(f"schedule {name}", options, known)
    found: Schedule = called_with(f"schedule {name}", made, {"total": total, **options})
    return check.function("schedule", found)
