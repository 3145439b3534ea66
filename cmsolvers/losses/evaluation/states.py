"""States on the path of a batch: x_t at a level per sample, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.table_combination import TableCombination


class Pair(NamedTuple):
    """What the two states of a consistency pair were made with, by one kernel.

    Attributes:
        outputs: float64 [4, B], the weights of f(x, t) - f(y, s): of x, F, y and F, with the inputs
            of the networks in place of the states where these are all that is stored.
        inputs: float64 [2, 2, B], (c_in, c_in sigma) of both states, which make these inputs.
        make: makes tensors of such weights.
    """

    outputs: Tensor
    inputs: Tensor
    make: Callable[[Tensor], Tensor]


class State:
    """A batch of states; of a formula's own, `State(x, level)`.

    Attributes:
        x: [B, ...].
        level: of each sample, float64 [B].
        scaled: c_in(level) x in the dtype of the student's network, where it was made with x.
        scaled_for: the model whose c_in that is; others with other scalings scale x themselves.
    """

    __slots__ = (
        "_lean",
        "_pair",
        "_row",
        "_told",
        "_velocity",
        "_x",
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
        pair: Pair | None = None,
        row: int = 0,
        told: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> None:
        """Of a pair, state number `row`; its x may be None where `scaled` is given.

        `told` is what the network of `scaled_for` gets beside `scaled`.
        """
        self._x, self.level, self.scaled, self.scaled_for = x, level, scaled, scaled_for
        self._lean = x is None  # for good: the weights of f are those of `scaled`, made x or not
        self._pair, self._row, self._told, self._velocity = pair, row, told, velocity

    @property
    def x(self) -> Tensor:
        """[B, ...]."""
        if self._x is None:
            assert self.scaled is not None and self._pair is not None
            c_in = self._pair.inputs[self._row, 0]
            self._x = (of(self.scaled) / c_in).tensor(self.scaled.dtype)
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
        """The tensor that `mapped` takes for the state: x, or `scaled` where that was stored."""
        return self.scaled if self._lean and self.scaled is not None else self.x

    @property
    def known(self) -> bool:
        """Whether the weights of f were made with the state, for `mapped`."""
        return self._pair is not None

    def mapped(self, made: Tensor) -> Combination:
        """f or D of the raw output of a network that scales as `scaled_for`."""
        assert self._pair is not None
        sign = -1.0 if self._row else 1.0
        return TableCombination((self.carrier, made), self._pair.outputs, 2 * self._row, sign)

    def forget_scaled(self) -> None:
        """To be called where a network wrote to `scaled`: it is made anew, or where next wanted."""
        pair, row = self._pair, self._row
        self.scaled = pair.make(pair.inputs[row : row + 1]) if self._lean and pair else None


def moved_along(x: State, velocity: Combination, end: Tensor) -> State:
    """x + (s - t) velocity at s = `end`, [B]."""
    return x.at(of(x.x) + velocity * (end - x.level), end)


def version_of(x: Tensor) -> int | None:
    """Counts what is written to a tensor in place; None in inference mode, which does not count."""
    return None if x.is_inference() else x._version
