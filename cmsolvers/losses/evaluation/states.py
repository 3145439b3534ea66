"""States on the path of a batch: x_t at a level per sample, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cmsolvers.losses.evaluation.combination import Combination, of


class Form(NamedTuple):
    """f = sign (table[first] x + table[first + 1] F), as a kernel wrote it with a state.

    With `scaled` in place of x where a state has that alone.
    """

    table: Tensor
    first: int
    sign: float


class Remade(NamedTuple):
    """How the only tensor of a state was made: make(table[row : row + 1]), which holds c_in x.

    `table` is float64 [J, 2, B], (c_in alpha, c_in sigma) in each row, with alpha = 1.
    """

    make: Callable[[Tensor], Tensor]
    table: Tensor
    row: int

    def c_in(self) -> Tensor:
        """The factor of x, float64 [B]."""
        return self.table[self.row, 0]

    def again(self) -> Tensor:
        """The same tensor once more."""
        return self.make(self.table[self.row : self.row + 1])


class State:
    """A batch of states; of a formula's own, `State(x, level)`.

    Attributes:
        x: [B, ...].
        level: of each sample, float64 [B].
        scaled: c_in(level) x in the dtype of the student's network, where it was made with x.
        form: f or D of the student's raw output, where its weights were made with x.
        scaled_for: the model whose c_in that is; others with other scalings scale x themselves.
    """

    __slots__ = (
        "_remade",
        "_told",
        "_velocity",
        "_x",
        "form",
        "level",
        "scaled",
        "scaled_for",
    )

    def __init__(
        self,
        x: Tensor | None,
        level: Tensor,
        scaled: Tensor | None = None,
        scaled_for: object = None,
        form: Form | None = None,
        told: Tensor | None = None,
        remade: Remade | None = None,
        velocity: Tensor | None = None,
    ) -> None:
        """`x` may be None where `scaled` and `remade`, which says how that was made, are given.

        `told` is what the network of `scaled_for` gets beside `scaled`.
        """
        self._x, self.level, self.scaled, self.scaled_for = x, level, scaled, scaled_for
        self.form, self._told, self._remade, self._velocity = form, told, remade, velocity

    @property
    def x(self) -> Tensor:
        """[B, ...]."""
        if self._x is None:
            assert self.scaled is not None and self._remade is not None
            self._x = (of(self.scaled) / self._remade.c_in()).tensor(self.scaled.dtype)
        return self._x

    @property
    def velocity(self) -> Tensor:
        """alpha' x_0 + sigma' z, the velocity of the pair that x was made of, [B, ...].

        Raises:
            ValueError: it was not made; `at.states(level, velocity=True)` makes it.
        """
        if self._velocity is None:
            raise ValueError("velocity must be made with the state: states(t, velocity=True)")
        return self._velocity

    def at(self, made: Combination, level: Tensor) -> State:
        """The state that was made of this one at another level, [B], in the same dtype."""
        return State(made.tensor(self.x.dtype), level)

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
        self.scaled = self._remade.again() if self._x is None and self._remade else None


def moved_along(x: State, velocity: Combination, end: Tensor) -> State:
    """x + (s - t) velocity at s = `end`, [B]."""
    return x.at(of(x.x) + velocity * (end - x.level), end)


def version_of(x: Tensor) -> int | None:
    """Counts what is written to a tensor in place; None in inference mode, which does not count."""
    return None if x.is_inference() else x._version
