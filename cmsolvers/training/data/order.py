"""Which samples a training step sees: a function of (size of the data set, step, seed) alone."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.data.stream_places import order_keys


def batch_indices(n: int, step: int, batch_size: int, seed: int) -> Tensor:
    """Positions of the samples of one step's global batch, int64 [batch_size] on the CPU.

    Every pass over the data is a fresh permutation, its incomplete last batch left out. The
    permutation of a pass is made once and kept, with that of one other pass: 8 n bytes each, and
    while it is made some 40 n.

    Args:
        n: samples in the data set.
        step: k >= 0.
        batch_size: of all ranks together, at most n.
        seed: of the run.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, or fewer samples than a batch.
    """
    n, size = check.count("n", n, least=0), check.count("batch_size", batch_size)
    if n < size:
        raise ValueError(f"batch_size must not exceed the data; got {size} with {n} samples")
    epoch, position = divmod(check.count("step", step, least=0), n // size)
    order = _order(n, check.count("seed", seed, least=0), epoch)
    # A copy: what the caller does to it must not reach the order that is kept.
    return order[position * size : (position + 1) * size].clone()


def rank_rows(batch_size: int, rank: int, world: int) -> slice:
    """Rows of the global batch that a rank trains on: the batch is cut into `world` equal parts.

    Raises:
        TypeError, ValueError: no rank of that world, or a batch that cannot be cut so.
    """
    size, world = check.count("batch_size", batch_size), check.count("world", world)
    rank = check.count("rank", rank, least=0, most=world - 1)
    if size % world:
        raise ValueError(
            f"batch_size must be divisible by the number of processes, {world}; got {size}"
        )
    part = size // world
    return slice(rank * part, (rank + 1) * part)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    """The permutation of one pass, cached: for large n it costs more than a training step."""
    return order_keys(n, seed, epoch).argsort(stable=True)
