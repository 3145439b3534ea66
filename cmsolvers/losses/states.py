"""States on the path of a batch: x_t at a level per sample, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class State:
    """A batch of states.

    Attributes:
        x: [B, ...].
        level: of each sample, float64 [B].
        scaled: c_in(level) x in the dtype of the student's network, where it was made with x.
        velocity: alpha' x_0 + sigma' z, the velocity of the pair that x was made of, where asked.
        form: (c_skip, c_out) of the student at the level, where they were made with x.
        scaled_for: the model whose c_in that is; others with other scalings scale x themselves.
    """

    x: Tensor
    level: Tensor
    scaled: Tensor | None = None
    velocity: Tensor | None = None
    form: tuple[Tensor, Tensor] | None = None
    scaled_for: object = None
