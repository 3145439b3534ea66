"""The settings of a training run, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmsolvers import checks as check
from cmsolvers import noise


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the course of a training run; a resumed run must have the same.

    Attributes:
        steps: optimiser steps in all.
        batch_size: samples per step.
        lr: peak learning rate: a linear rise over `warmup`, then half a cosine down to 0.
        warmup: share of the steps in which the rate rises, in [0, 1).
        weight_decay: of AdamW.
        betas: of AdamW.
        clip: largest norm of the gradient, 0 for no limit.
        seed: an int; decides data order, noise, levels and dropout.

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

    def __post_init__(self) -> None:
        check.count("steps", self.steps)
        check.count("batch_size", self.batch_size)
        check.positive("lr", self.lr)
        check.below("warmup", check.non_negative("warmup", self.warmup), "1", 1.0)
        check.non_negative("weight_decay", self.weight_decay)
        check.non_negative("clip", self.clip)
        noise.key(check.count("seed", self.seed, least=0), 1)

    def rate(self, step: int) -> float:
        """The learning rate of step number `step`, counted from 0."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))
