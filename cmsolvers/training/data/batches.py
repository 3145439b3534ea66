"""The input of a training step, as a function of (data, step, seed)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.training.data.data_protocol import TrainingData
from cmsolvers.training.data.order import batch_indices, rank_rows
from cmsolvers.training.data.tensor_data import TensorData


@dataclass(frozen=True)
class Batch:
    """Input of one training step.

    Attributes:
        x0: the samples [B, ...].
        index: their positions in the data set, int64 [B].
        key: noise key whose ids are the samples' positions in the data set: sample 17 of step k
            gets the same noise and levels whatever else is in the batch.
        step: k, to be given to losses as `step`.
        total: training steps in all, for curricula.
        labels: their classes, int64 [B]; None where the data have none.
    """

    x0: Tensor
    index: Tensor
    key: noise.Key
    step: int
    total: int
    labels: Tensor | None = None

    def part(self, start: int, stop: int) -> Batch:
        """Rows start to stop, with the noise that they have in the whole batch."""
        rows = slice(start, stop)
        table = self.key.table
        if table is None or len(table) != len(self.index):
            table = self.key.rows(len(self.index), self.index.device)
        return replace(
            self,
            x0=self.x0[rows],
            index=self.index[rows],
            key=noise.Key(table=table[rows]),
            labels=None if self.labels is None else self.labels[rows],
        )


def batch_at(
    data: Tensor | TrainingData,
    step: int,
    total: int,
    batch_size: int,
    seed: int,
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str | None = None,
) -> Batch:
    """The batch of training step `step`, a function of (data, step, seed).

    Every pass over the data is a fresh permutation, its incomplete last batch left out.

    Args:
        data: a data set, or samples [n, ...] on any device.
        step: k >= 0.
        total: steps in all.
        batch_size: B, at most n; of all ranks together.
        seed: an int.
        rank: which of `world` equal parts of the batch is wanted.
        world: in how many parts the batch is cut.
        device: where the batch goes; None: where the data are.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, or fewer samples than a batch.
    """
    data = as_data(data)
    rows = rank_rows(batch_size, rank, world)
    index = batch_indices(len(data), step, batch_size, seed)[rows]
    if isinstance(data, TensorData):
        # Without waiting for the device, which may still be busy with earlier steps.
        index = index.to(data.x.device, non_blocking=True)
    x0, labels = data.samples(index, seed=seed, step=step)
    return assembled(x0, labels, index, seed=seed, step=step, total=total, device=device)


def as_data(data: Tensor | TrainingData) -> TrainingData:
    """A data set: itself, or what holds these samples.

    Raises:
        TypeError: neither a tensor nor a data set.
    """
    if isinstance(data, Tensor):
        return TensorData(data)
    if not callable(getattr(data, "samples", None)):
        raise TypeError(
            f"data must be a tensor [n, ...] or have the methods of TrainingData; "
            f"got {check.describe(data)}"
        )
    return data


def assembled(
    x0: Tensor,
    labels: Tensor | None,
    index: Tensor,
    *,
    seed: int,
    step: int,
    total: int,
    device: torch.device | str | None = None,
) -> Batch:
    """A batch of these samples, on a device (None: where x0 is), its key's ids the positions."""
    place = x0.device if device is None else torch.device(device)
    x0, index = moved(x0, place), moved(index, place)
    labels = None if labels is None else moved(labels, place)
    key = noise.key(seed, len(index), ids=index, device=place)
    return Batch(x0, index, key, step, total, labels)


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the host to CUDA through pinned memory, without waiting."""
    if value.device == device:
        return value
    if device.type == "cuda" and value.device.type == "cpu" and not value.is_pinned():
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
