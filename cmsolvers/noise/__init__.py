"""Noise as a function, z = normal(seed, sample_id, stream, draw, element): contract, VERSION 1.

Philox4x32-10 (Salmon et al. 2011) keyed by the 64-bit seed, counter (element // 4, draw, sample id
low, sample id high | stream << 24), and Box-Muller from IEEE operations alone. Values are
bit-identical everywhere: they do not depend on device, batch, rank, dtype (before the cast), memory
format or thread count. No state is kept: resuming is calling again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers.noise.brownian import BrownianPath
from cmsolvers.ops.keys import Key, SeedLike, resolve
from cmsolvers.ops.random import normal, uniform

__all__ = [
    "BROWNIAN",
    "LATENT",
    "LEVELS",
    "OTHER",
    "STEPS",
    "TRAINING",
    "VERSION",
    "BrownianPath",
    "Key",
    "SeedLike",
    "key",
    "normal",
    "uniform",
]

VERSION = 1
"""Version of the contract. Values never change within a version."""

LATENT, STEPS, BROWNIAN, TRAINING, LEVELS, OTHER = range(6)
"""Streams: initial latent, sampler steps, Brownian tree, training noise, training levels, and the
rest of training."""


def key(
    seed: SeedLike,
    batch: int,
    *,
    offset: int = 0,
    ids: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Key:
    """Resolve a seed once, to be given as `seed=` many times.

    Same arguments and errors as `ops.keys.resolve`.

    Args:
        seed: an int in [0, 2^64), an int64 tensor [B], a torch.Generator, None, or a Key (returned
            as it is).
        batch: B.
        offset: id of the first sample, for shards.
        ids: int64 [B], the sample ids in place of offset.
        device: where tensors of seeds or ids live.

    Returns:
        The key of the batch.

    Raises:
        TypeError, ValueError: kinds, ranges and shapes that do not fit.
    """
    return resolve(seed, batch, offset=offset, ids=ids, device=device)
