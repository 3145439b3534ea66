"""The digits as the demo uses them: training digits and held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from cmsolvers.training.data import Scale
from cmsolvers.training.data import digits as digit_data

NAME = "digits"
"""What stands for these digits where a file of images may be named."""


@dataclass(frozen=True)
class Digits:
    """Images as models see them (mean 0, deviation 0.5), split once and for all.

    Attributes:
        train: [1437, 1, 8, 8].
        train_labels: [1437].
        held: [360, 1, 8, 8], never trained on.
        held_labels: [360].
        scale: back to pixels in 0..16.
    """

    train: Tensor
    train_labels: Tensor
    held: Tensor
    held_labels: Tensor
    scale: Scale


@lru_cache(maxsize=1)
def load() -> Digits:
    """The digits; the split belongs to the data and does not depend on the demo's seed."""
    train, held = digit_data("train"), digit_data("held")
    assert train.labels is not None and held.labels is not None and train.scale is not None
    return Digits(train.x, train.labels, held.x, held.labels, train.scale)
