"""What a loss was at which noise levels, step by step of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cmsolvers.training.reports import StepReport, Training

EDGES = (0.3, 1.0, 3.0, 8.0)
"""Noise levels between which the report tells of a loss."""


class LossByLevel:
    """A monitor that notes the mean of a loss in each band of noise levels, step by step.

    Attributes:
        bands: for each step, the mean of each band, len(EDGES) + 1 of them; NaN without a sample.
    """

    def __init__(self) -> None:
        self._edges = torch.tensor(EDGES, dtype=torch.float64)
        self.bands: list[list[float]] = []

    def started(self, trainer: Training) -> None:
        """Nothing is needed to begin."""

    def stepped(self, report: StepReport) -> None:
        """Note a step.

        Raises:
            TypeError: the loss gave a number alone, no terms and levels.
        """
        if report.levels is None or report.per_sample is None:
            raise TypeError("loss must return a LossOutput, with terms and levels; got a number")
        band = torch.bucketize(report.levels.double().contiguous(), self._edges)
        sizes = torch.bincount(band, minlength=len(EDGES) + 1).double()
        sums = torch.bincount(band, report.per_sample.double(), minlength=len(EDGES) + 1)
        self.bands.append((sums / sizes).tolist())

    def saved(self, path: Path) -> None:
        """Notes are not part of a checkpoint."""

    def ended(self, trainer: Training) -> None:
        """Nothing is left to do."""


def names(low: float, high: float) -> list[str]:
    """The bands in words, from a model's smallest level to its largest."""
    ends = (low, *EDGES, high)
    return [f"σ {a:g} to {b:g}" for a, b in pairwise(ends)]


def smooth(values: Sequence[float], window: int) -> NDArray[np.float64]:
    """Running means over `window` values, those that are NaN left out; the last at each step."""
    raw = np.asarray(values, dtype=np.float64)
    there = np.isfinite(raw)
    ones = np.ones(window)
    sums = np.convolve(np.where(there, raw, 0.0), ones, mode="valid")
    counts = np.convolve(there.astype(np.float64), ones, mode="valid")
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts


def window_of(steps: int) -> int:
    """How many steps a running mean of the report spans."""
    return max(1, steps // 14)


def peaks(bands: Sequence[Sequence[float]]) -> list[int | None]:
    """The step at which each band's running mean is largest once the first drop is over.

    The first seventh of the run is left out: there the copied weights, which are still a
    denoiser's, first learn to agree with their own average. None: the band has no such peak,
    because it did not rise by a twentieth before it, rises to the end, or was never seen.
    """
    window = window_of(len(bands))
    begin = len(bands) // 7
    found: list[int | None] = []
    for values in zip(*bands, strict=True):
        mean = smooth(values, window)
        if not np.isfinite(mean[begin:]).any():
            found.append(None)
            continue
        at = begin + int(np.nanargmax(mean[begin:]))
        risen = mean[at] > 1.05 * np.nanmin(mean[: at + 1])
        found.append(at + math.ceil(window / 2) if risen and at < len(mean) - 1 else None)
    return found
