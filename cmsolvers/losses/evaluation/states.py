"""States on the path of a batch: x_t at a level per sample, and what is known about it."""

from __future__ import annotations

from torch import Tensor

from cmsolvers.losses.evaluation.combination import Factor, of


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

    __slots__ = ("_c_in", "_told", "_x", "form", "level", "scaled", "scaled_for", "velocity")

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
    ) -> None:
        """`x` may be None where `scaled` and `c_in` are given: it is made where it is asked for.

        `told` is what the network of `scaled_for` gets beside `scaled`.
        """
        self._told = told
        self._x, self.level, self.scaled, self.velocity = x, level, scaled, velocity
        self.form, self.scaled_for, self._c_in = form, scaled_for, c_in

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
