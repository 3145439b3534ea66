"""The settings of a training run, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from cmsolvers import checks as check
from cmsolvers import noise

PRECISIONS = ("no", "bf16", "fp16")
FIXED = ("seed", "batch_size", "betas", "weight_decay")
"""What a resumed run must have as it was."""
COURSE = ("steps", "lr", "warmup", "clip", "precision")
"""What a resumed run may have otherwise, from the next step on, with a warning."""


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the course of a training run.

    A run that is resumed must have the same `seed` and `batch_size`, which say what its steps see,
    and the same `betas` and `weight_decay`. With another of COURSE it goes on, and warns of it:
    what was done stays as it was, the steps to come follow the new value. `accumulate` and
    `max_bad_steps` may change freely.

    Attributes:
        steps: optimiser steps in all. A finished run goes on when it is raised: the learning rate
            of the steps to come is then that of the longer run, and jumps where the run had ended.
        batch_size: samples per step, of all processes together.
        lr: peak learning rate: a linear rise over `warmup`, then half a cosine down to 0.
        warmup: share of the steps in which the rate rises, in [0, 1).
        weight_decay: of AdamW.
        betas: of AdamW.
        clip: largest norm of the gradient, 0 for no limit.
        seed: an int; decides data order, noise, levels and dropout.
        accumulate: micro-batches that a process makes of its share of a batch, for less memory.
        max_bad_steps: a step whose loss or gradient is not finite is skipped; so many in a row end
            the run. 1: the first one does.
        precision: "no", or "bf16" and "fp16" for autocast around the loss; weights, optimiser and
            averages stay as they are.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of range.
    """

    steps: int
    batch_size: int = 128
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 0.0
    seed: int = 0
    accumulate: int = 1
    max_bad_steps: int = 10
    precision: str = "no"

    def __post_init__(self) -> None:
        check.count("steps", self.steps)
        check.count("batch_size", self.batch_size)
        check.positive("lr", self.lr)
        check.below("warmup", check.non_negative("warmup", self.warmup), "1", 1.0)
        check.non_negative("weight_decay", self.weight_decay)
        check.non_negative("clip", self.clip)
        check.count("accumulate", self.accumulate)
        check.count("max_bad_steps", self.max_bad_steps)
        check.choice("precision", self.precision, PRECISIONS)
        if self.batch_size % self.accumulate:
            raise ValueError(
                "batch_size must be a multiple of accumulate; "
                f"got {self.batch_size} and {self.accumulate}"
            )
        noise.key(check.count("seed", self.seed, least=0), 1)

    def rate(self, step: int, peak: float | None = None) -> float:
        """The learning rate of step number `step`, counted from 0; `peak` replaces `lr`."""
        peak = self.lr if peak is None else peak
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return peak * (step + 1) / rise
        return peak * 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))

    def about(self) -> dict[str, object]:
        """The settings as JSON gives them back."""
        return asdict(self) | {"betas": list(self.betas)}
