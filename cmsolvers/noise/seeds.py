"""Seeds of the steps of one job."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmsolvers.ops.keys import checked_step, draw_seed
from cmsolvers.ops.reference import MASK, philox

STREAM = 6
"""The stream of the noise contract that seeds of steps come from; no noise does."""


@dataclass(frozen=True, init=False)
class Seeds:
    """A new seed for every step of a job, all from one: `Seeds(0).at(step)`.

    A seed is a function of (seed, step) alone: nothing is remembered, so a loop that is resumed at
    step 17 goes on with the noise of step 17. What `at` gives is an int and stands wherever a seed
    does. Seeds of two steps, or of a step and a seed chosen by hand, are equal by chance only, one
    in 2^64.

    `at(step)` is word 0 + 2^32 x word 1 of Philox4x32-10 with key `seed` and counter (0, 0, step
    low 32 bits, step high | 6 << 24): the two words behind `noise.uniform((1, 2), seed, stream=6,
    offset=step)`. It belongs to the contract of `noise.VERSION`.

    Args:
        seed: an int in [0, 2^64); None or a `torch.Generator`: it is drawn once, now.

    Attributes:
        seed: the int, to be written down where it was drawn.

    Raises:
        TypeError: a seed of another kind.
        ValueError: a seed out of range.

    Example:
        >>> seeds = noise.Seeds(0)
        >>> for step, x in enumerate(batches):
        ...     y = dpmpp_2m_sde(denoiser, x, sigmas, seed=seeds.at(step))
    """

    seed: int

    def __init__(self, seed: int | torch.Generator | None = None) -> None:
        object.__setattr__(self, "seed", draw_seed(seed))

    def at(self, step: int) -> int:
        """The seed of a step, in [0, 2^64).

        Args:
            step: in [0, 2^56); a number of your own choosing, usually that of the batch.

        Raises:
            TypeError: step is no int.
            ValueError: step out of range.
        """
        step = checked_step(step)
        key = (self.seed & MASK, self.seed >> 32)
        low, high, *_ = philox((0, 0, step & MASK, (step >> 32) | STREAM << 24), key)
        return high << 32 | low
