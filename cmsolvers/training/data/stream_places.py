"""What training draws from stream 5 (`noise.OTHER`), and where: no two uses share a value.

A value of the contract has a place (seed, sample id, stream, draw, element). With a run's seed:

| what | sample id | draw | elements |
|---|---|---|---|
| order of a pass | position in the data set | number of the pass | 0 |
| flip, crop row, crop column | position in the data set | training step | 4, 5, 6 (7: free) |
| seed of torch's generators | 2^55 | training step | 0, 1 |
| the same while a user's loader is read | 2^55 + 1 | training step | 0, 1 |
| points of the 2-D toys, with the toy's own seed | number of the point | 2^32 - 1 | 0 to 3 |
| a fixed sample of a large data set, with the seed 0 | number | 2^32 - 2 | 0 |
| held-out digits, with the seed 0 | position among all digits | 0 | 0 |

Outside training, and with seeds of their own: directions of `tasks.metrics`, probes of
`tasks.likelihood`, data of `tasks.exact_problems` and of the demo's benchmark of losses. Noise and
levels of losses, and which labels are dropped, are streams 3 and 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers import noise

GENERATOR_ID = 2**55
"""Sample ids that no sample has: this one and the next."""
TOY_DRAW, SAMPLE_DRAW = 2**32 - 1, 2**32 - 2
"""Draws that no step and no pass reaches."""
AUGMENTATION = slice(4, 8)


def order_keys(n: int, seed: int, epoch: int) -> Tensor:
    """What the samples of a data set are sorted by in one pass, float64 [n]."""
    keys = noise.uniform((n, 1), seed, stream=noise.OTHER, draw=epoch, dtype=torch.float64)
    return keys[:, 0]


def augmentation(index: Tensor, seed: int, step: int) -> Tensor:
    """Uniforms for flip, crop row and crop column of each sample, float64 [b, 4] (one is spare)."""
    u = noise.uniform(
        (len(index), AUGMENTATION.stop),
        seed,
        stream=noise.OTHER,
        draw=step,
        ids=index,
        dtype=torch.float64,
        device=index.device,
    )
    return u[:, AUGMENTATION]


def torch_seed(step: int, seed: int) -> int:
    """A seed for torch's own generators at this step (dropout), from the noise contract."""
    return _whole(seed, step, GENERATOR_ID)


def reading_seed(step: int, seed: int) -> int:
    """A seed for torch's generator while a user's loader is asked for the batch of this step."""
    return _whole(seed, step, GENERATOR_ID + 1)


def _whole(seed: int, draw: int, place: int) -> int:
    """62 bits of two uniforms."""
    u = noise.uniform(
        (1, 2), seed, stream=noise.OTHER, draw=draw, offset=place, dtype=torch.float64
    )
    high, low = (int(v * 2**31) for v in u[0].tolist())
    return (high << 31) | low


def toy_uniforms(index: Tensor, seed: int) -> Tensor:
    """Four uniforms for each point of a toy, float64 [b, 4]."""
    return noise.uniform(
        (len(index), 4), seed, stream=noise.OTHER, draw=TOY_DRAW, ids=index, dtype=torch.float64
    )


def fixed_sample(n: int, count: int) -> Tensor:
    """At most `count` of n positions, ascending, int64; they depend on n and `count` alone."""
    if n <= count:
        return torch.arange(n)
    u = noise.uniform((count, 1), 0, stream=noise.OTHER, draw=SAMPLE_DRAW, dtype=torch.float64)
    chosen = (u[:, 0] * n).floor().long().clamp_(max=n - 1)
    return torch.tensor(sorted(set(chosen.tolist())))
