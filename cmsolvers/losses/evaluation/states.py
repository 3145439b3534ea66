"""States on the path of a batch: x_t at a level per sample, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cmsolvers.losses.evaluation.combination import Combination, Factor, of


class State:
    """A batch of states; of a formula's own, `State(x, level)`.

    Attributes:
        x: [B, ...].
        level: of each sample, float64 [B].
        scaled: c_in(level) x in the dtype of the student's network, where it was made with x.
        velocity: alpha' x_0 + sigma' z, the velocity of the pair that x was made of, where asked.
        form: weights of `carrier` and of the student's raw output in f or D, where they were made
            with x.
        scaled_for: the model whose c_in that is; others with other scalings scale x themselves.
    """

    __slots__ = (
        "_c_in",
        "_remake",
        "_told",
        "_x",
        "form",
        "level",
        "scaled",
        "scaled_for",
        "velocity",
    )

    def __init__(
        self,
        x: Tensor | None,
        level: Tensor,
        scaled: Tensor | None = None,
        velocity: Tensor | None = None,
        form: tuple[Factor, Factor] | None = None,
        scaled_for: object = None,
        c_in: Factor | None = None,
        told: Tensor | None = None,
        remake: Callable[[], Tensor] | None = None,
    ) -> None:
        """`x` may be None where `scaled`, `c_in` and `remake`, which makes `scaled`, are given.

        `told` is what the network of `scaled_for` gets beside `scaled`.
        """
        self._told = told
        self._x, self.level, self.scaled, self.velocity = x, level, scaled, velocity
        self.form, self.scaled_for, self._c_in = form, scaled_for, c_in
        self._remake = remake

    @property
    def x(self) -> Tensor:
        """[B, ...]."""
        if self._x is None:
            assert self.scaled is not None and self._c_in is not None
            self._x = (of(self.scaled) / self._c_in).tensor().to(self.scaled.dtype)
        return self._x

    def take_told(self, model: object) -> Tensor | None:
        """What a model's network is told, once: the network may write to it. Else None."""
        if self._told is None or model is not self.scaled_for:
            return None
        told, self._told = self._told, None
        return told

    @property
    def carrier(self) -> Tensor:
        """The tensor that `form` takes for the state: x, or `scaled` where there is no other."""
        return self.x if self._x is not None or self.scaled is None else self.scaled

    def forget_scaled(self) -> None:
        """To be called where a network wrote to `scaled`: it is made anew, or where next wanted."""
        self.scaled = self._remake() if self._x is None and self._remake is not None else None


def moved_along(x: State, velocity: Combination, end: Tensor) -> State:
    """x + (s - t) velocity at s = `end`, [B]."""
    moved = of(x.x) + velocity * (end - x.level)
    return State(moved.tensor().to(x.x.dtype), end)


def version_of(x: Tensor) -> int | None:
    """Counts what is written to a tensor in place; None in inference mode, which does not count."""
    if torch.compiler.is_compiling():
        return 0
    return None if x.is_inference() else x._version


def written(x: Tensor, before: int | None) -> bool:
    """Whether a tensor was perhaps written to since `version_of`."""
    return before is None or version_of(x) != before
