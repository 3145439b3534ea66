"""Noise as a function, z = normal(seed, sample_id, stream, draw, element): contract, VERSION 1.

Philox4x32-10 (Salmon et al. 2011) keyed by the 64-bit seed, counter (element // 4, draw, sample id
low, sample id high | stream << 24), and Box-Muller from IEEE operations alone. Values are
bit-identical everywhere: they do not depend on device, batch, rank, dtype (before the cast), memory
format or thread count. No state is kept: resuming is calling again.

`key` resolves a seed once; its `Key` can then be given as `seed=` many times.
"""

from __future__ import annotations

from cmsolvers.noise.brownian import BrownianPath
from cmsolvers.ops.keys import Key, SeedLike
from cmsolvers.ops.keys import resolve as key
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
