"""Noise as a function, z = normal(seed, sample_id, stream, draw, element): contract, VERSION 1.

Philox4x32-10 (Salmon et al. 2011) keyed by the 64-bit seed, counter (element // 4, draw, sample id
low, sample id high | stream << 24), and Box-Muller from IEEE operations alone. Values are
bit-identical everywhere: they do not depend on device, batch, rank, dtype (before the cast), memory
format or thread count. No state is kept: resuming is calling again.

The same seed is the same noise, whatever it is added to. So in a loop

- over the batches of one job, let the sample ids go on: `seed=Key(0, offset=done)`, `done` being
  how many samples came before. Sample 17 gets the same noise however the job is cut into batches;
- over steps (of training, of a simulation), give each step its own seed, `seed=Seeds(0).at(step)`,
  or, where there is the argument, its own `draw=step`. In a captured graph the step is a tensor:
  `seed=key(0, batch, draw=step)`, with an int64 `step` on the device.

`key` resolves a seed of any kind once; its `Key` can then be given as `seed=` many times.
"""

from __future__ import annotations

from cmsolvers.noise.brownian import BrownianPath
from cmsolvers.noise.seeds import STREAM as SEEDS
from cmsolvers.noise.seeds import Seeds
from cmsolvers.ops.keys import Key, SeedLike
from cmsolvers.ops.keys import resolve as key
from cmsolvers.ops.random import normal, uniform

__all__ = [
    "BROWNIAN",
    "LATENT",
    "LEVELS",
    "OTHER",
    "SEEDS",
    "STEPS",
    "TRAINING",
    "VERSION",
    "BrownianPath",
    "Key",
    "SeedLike",
    "Seeds",
    "key",
    "normal",
    "uniform",
]

VERSION = 1
"""Version of the contract. Values never change within a version."""

LATENT, STEPS, BROWNIAN, TRAINING, LEVELS, OTHER = range(6)
"""Streams: initial latent, sampler steps, Brownian tree, training noise, training levels, and the
rest of training. `SEEDS` is that of the seeds that `Seeds` gives."""
