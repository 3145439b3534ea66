"""The micro-batches of a step, what a loss made of each, and the seeds of torch's generators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses import LossOutput
from cmsolvers.training.data import Batch

Terms = tuple[Tensor, Tensor]
"""(levels, terms of the loss), [B] each."""


def micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """A process's batch as `count` contiguous parts, in order; ids of noise stay the samples'.

    Raises:
        ValueError: parts would be of different sizes, and their mean not that of the batch.
    """
    if count == 1:
        yield batch
        return
    size, rest = divmod(len(batch.x0), count)
    if rest or not size:
        raise ValueError(
            f"a batch of {len(batch.x0)} samples must be a multiple of settings.accumulate, {count}"
        )
    for first in range(0, size * count, size):
        yield batch.part(first, first + size)


def unpacked(made: object) -> tuple[Tensor, Terms | None]:
    """The scalar of what a loss returned, and levels and terms of its samples.

    Raises:
        TypeError, ValueError: it returned no number with a gradient.
    """
    terms = None
    if isinstance(made, LossOutput):
        terms = made.levels[0], made.per_sample
        made = made.loss
    if not isinstance(made, Tensor):
        raise TypeError(
            f"loss must return a tensor of one entry or a LossOutput; got {check.describe(made)}"
        )
    if made.numel() != 1:
        raise ValueError(f"loss must return a tensor of one entry; got shape {list(made.shape)}")
    if not made.requires_grad:
        raise ValueError("loss must depend on the network's parameters; it has no gradient")
    return made.reshape(()), terms


def joined(terms: Sequence[Terms | None]) -> Tensor | None:
    """Levels and terms of all micro-batches, float64 [2, B]; None where one gave none."""
    found = [t for t in terms if t is not None]
    if not found or len(found) < len(terms):
        return None
    rows = [torch.cat([t[k].detach().reshape(-1).double() for t in found]) for k in (0, 1)]
    return torch.stack(rows)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of one device.

    `torch.manual_seed` asks after every kind of device that there might be, which takes longer than
    a step of a small network.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
