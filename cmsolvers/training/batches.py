"""Data order and the seeds of a training step, as functions of (seed, step) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise


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
    """

    x0: Tensor
    index: Tensor
    key: noise.Key
    step: int
    total: int


def batch_at(data: Tensor, step: int, total: int, batch_size: int, seed: int) -> Batch:
    """The batch of training step `step`, a function of (data, step, seed).

    Every pass over the data is a fresh permutation, its incomplete last batch left out.

    Args:
        data: [n, ...], n >= batch_size, on any device.
        step: k >= 0.
        total: steps in all.
        batch_size: B.
        seed: an int.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, or fewer samples than a batch.
    """
    check.state("data", data)
    n, size = data.shape[0], check.count("batch_size", batch_size)
    if n < size:
        raise ValueError(f"batch_size must not exceed the data; got {size} with {n} samples")
    epoch, position = divmod(check.count("step", step, least=0), n // size)
    # A copy: what the caller does to it must not reach the order that is kept.
    chosen = _order(n, check.count("seed", seed, least=0), epoch)[
        position * size : (position + 1) * size
    ].clone()
    # Without waiting for the device, which may still be busy with earlier steps.
    index = chosen.to(data.device, non_blocking=True)
    key = noise.key(seed, size, ids=index, device=data.device)
    return Batch(data[index], index, key, step, total)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    """The permutation of one pass, cached: for large n it costs more than a training step."""
    keys = noise.uniform((n, 1), seed, stream=noise.OTHER, draw=epoch, dtype=torch.float64)
    return keys[:, 0].argsort(stable=True)


def torch_seed(step: int, seed: int) -> int:
    """A seed for torch's own generators at this step (dropout), from the noise contract."""
    u = noise.uniform(
        (1, 2), seed, stream=noise.OTHER, draw=step, offset=2**55, dtype=torch.float64
    )
    high, low = (int(v * 2**31) for v in u[0].tolist())
    return (high << 31) | low
