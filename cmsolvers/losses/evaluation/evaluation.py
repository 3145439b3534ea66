"""One evaluation of a loss: the batch, its levels and its noise, and the networks.

This is what the formula of a loss may ask. Everything random in it is a function of (key, step):
the noise z (stream 3 of the contract), the levels, the dropped labels and further uniforms
(stream 4); the dropout masks of all passes are those of the student's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cmsolvers import noise, ops
from cmsolvers.losses.evaluation.bad_rows import LeftOut
from cmsolvers.losses.evaluation.combination import Weight, of
from cmsolvers.losses.evaluation.model_views import ModelView
from cmsolvers.losses.evaluation.network_calls import Model
from cmsolvers.losses.evaluation.randomness import SameRandomness
from cmsolvers.losses.evaluation.states import Pair, State, moved_along
from cmsolvers.processes.coordinates import Coordinates

EXTRA = 8
"""First element of stream 4 that is not for levels: 8 is for labels, 12 on for formulas."""
_OWN = 4
_NO_LEVELS = torch.empty(0)


class Evaluation:
    """What a formula works with.

    Attributes:
        x0: clean data [B, ...].
        t: the levels of the student, float64 [B].
        s: where its map ends, or the second level of a pair; likewise.
        path: coordinates of states and levels.
        student: the model, with gradient.
        frozen: the model without gradient, on the same random numbers.
        target: the argument `target` without gradient; `frozen` where it was None.
        diagnostics: numbers and tensors to return beside the loss.
        same: the random numbers that all passes share.
        progress: step / total in [0, 1], for schedules; 1 where no total was given.
        left_out: the samples that `bad_rows="zero"` leaves out; None where none is.
        dropped: which labels `label_dropout` replaced, bool [B]; None without it.
        ends_clean: whether all s are 0 (True) or none is (False), where the levels say so before
            they are read; None elsewhere.
    """

    def __init__(
        self,
        model: Model,
        x0: Tensor,
        key: noise.Key,
        draw: int,
        *,
        teacher: Model | None = None,
        target: Model | None = None,
        extra: Mapping[str, object] | None = None,
        teacher_extra: Mapping[str, object] | None = None,
    ) -> None:
        self.x0, self.key, self.draw = x0, key, draw
        self.extra: dict[str, object] = dict(extra) if extra else {}
        self.same = same = SameRandomness(x0.device)
        self.student = ModelView("model", model, self.extra, same, True)
        self.path: Coordinates = self.student.path
        self.frozen = self.student.without_gradient()
        self.target = self.frozen
        if target is not None:
            self.target = ModelView("target", target, self.extra, same, False)
        self._teacher: ModelView | None = None
        if teacher is not None:
            own = self.extra if teacher_extra is None else teacher_extra
            self._teacher = ModelView("teacher", teacher, own, same, False, self.path)
        self.t = self.s = _NO_LEVELS
        self.diagnostics: dict[str, Any] = {}
        self.progress: float | Tensor = 1.0
        self.left_out: LeftOut | None = None
        self.dropped: Tensor | None = None
        self.ends_clean: bool | None = None

    @property
    def size(self) -> int:
        """Elements per sample."""
        return math.prod(self.x0.shape[1:])

    @property
    def teacher(self) -> ModelView:
        """The teacher.

        Raises:
            ValueError: there is none.
        """
        if self._teacher is None:
            raise ValueError("teacher must be a denoiser or a flow map here; got None")
        return self._teacher

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher was given."""
        return self._teacher is not None

    def hand(self, **inputs: object) -> None:
        """Give the model, its frozen copy and the target further arguments; not the teacher."""
        alone = self.target is self.frozen
        self.student, self.frozen = self.student.given(inputs), self.frozen.given(inputs)
        self.target = self.frozen if alone else self.target.given(inputs)

    def states(self, *levels: Tensor, velocity: bool = False) -> tuple[State, ...]:
        """x_t of the batch at each of these levels, all with the same z, in one launch.

        Args:
            levels: float64 [B] each, one or two.
            velocity: also alpha' x_0 + sigma' z, the velocity of the pair, at the first level.
        """
        if len(levels) == 2 and not velocity:
            pair = self._consistency_pair(*levels)
            if pair is not None:
                return pair
        dtype = self.student.input_dtype or self.x0.dtype
        rows: list[tuple[Weight, Weight]] = []
        dtypes: list[torch.dtype] = []
        scalings: list[Weight | None] = []
        for level in levels:
            alpha: Weight = 1.0 if self.path.karras else self.path.alpha(level)
            row = (alpha, self.path.sigma(level))
            factor = self.student.c_in(level)
            rows.append(row)
            dtypes.append(self.x0.dtype)
            plain = isinstance(factor, float) and factor == 1.0 and dtype is self.x0.dtype
            scalings.append(None if plain else factor)
            if factor is not None and not plain:
                rows.append((row[0] * factor, row[1] * factor))
                dtypes.append(dtype)
        if velocity:
            rows.append(self.path.pair_rates(levels[0]))
            dtypes.append(self.x0.dtype)
        made = iter(
            ops.noise_forms(
                self.x0,
                self._table(rows),
                seed=self.key,
                stream=noise.TRAINING,
                draw=self.draw,
                dtypes=dtypes,
            )
        )
        of_student = self.student.inner
        pairs = [(next(made), None if factor is None else next(made)) for factor in scalings]
        speeds = [next(made) if velocity and k == 0 else None for k in range(len(levels))]
        return tuple(
            State(x, level, scaled, of_student, velocity=speed)
            for (x, scaled), level, speed in zip(pairs, levels, speeds, strict=True)
        )

    def _consistency_pair(self, high: Tensor, low: Tensor) -> tuple[State, State] | None:
        """Both states with what their networks get, where one launch knows all weights."""
        inner = self.student.preconditioned
        if inner is None:
            return None
        own, of_net = self.x0.dtype, inner.dtype or self.x0.dtype
        # Where both networks get the same inputs, these are all that is stored.
        lean = of_net is own and self.target.scales_as(inner)
        if lean and not torch.compiler.is_compiling():
            lean = not torch.is_inference_mode_enabled()  # see `version_of`
        rows = inner.pair_inputs(high, low, self.x0) if lean else inner.pair_rows(high, low)
        if rows is None:
            return None
        made = ops.noise_forms(
            self.x0,
            rows[0],
            seed=self.key,
            stream=noise.TRAINING,
            draw=self.draw,
            dtypes=None if lean else (own, own, of_net, of_net),
        )
        x, y, x_in, y_in = (None, None, *made) if lean else made
        told = rows[2:] or (None, None)
        pair = Pair(rows[1], rows[0], self._one_form)
        return (
            State(x, high, x_in, inner, pair, 0, told[0]),
            State(y, low, y_in, inner, pair, 1, told[1]),
        )

    def _one_form(self, weights: Tensor) -> Tensor:
        """The weighted sum of the batch and its noise, in the dtype of x0."""
        return ops.noise_forms(
            self.x0, weights, seed=self.key, stream=noise.TRAINING, draw=self.draw
        )[0]

    def noise(self) -> Tensor:
        """z, unit normals [B, ...]."""
        return self._one_form(self._table([(0.0, 1.0)]))

    def uniform(self, count: int = 1) -> Tensor:
        """Further random numbers in (0, 1), float64 [B, count], count at most 4."""
        start = EXTRA + _OWN
        return self._uniforms(start + count)[:, start:]

    def label_uniform(self) -> Tensor:
        """The random number of each sample's label, float64 [B]."""
        return self._uniforms(EXTRA + 1)[:, EXTRA]

    def slope(self, view: ModelView, at: State) -> Tensor:
        """A model's velocity at a state, made: [B, ...]."""
        return view.velocity(at).tensor(self.x0.dtype)

    def teacher_velocity(self, at: State) -> Tensor:
        """dx/dlevel at a state of the student's path by the teacher, in any coordinates: [B, ...].

        Raises:
            ValueError: there is no teacher.
        """
        return self.slope(self.teacher, at)

    def moved(self, at: State, level: Tensor, velocity: Tensor) -> State:
        """Euler's step along a velocity to another level."""
        return moved_along(at, of(velocity), level)

    def _uniforms(self, count: int) -> Tensor:
        return noise.uniform(
            (len(self.x0), count),
            self.key,
            stream=noise.LEVELS,
            draw=self.draw,
            dtype=torch.float64,
            device=self.x0.device,
        )

    def _table(self, rows: list[tuple[Weight, Weight]]) -> Tensor:
        """Pairs of weights as float64 [J, 2, B]."""
        batch = len(self.x0)
        flat = [weight for row in rows for weight in row]
        full = [
            weight.expand(batch)
            if isinstance(weight, Tensor)
            else torch.full((batch,), weight, dtype=torch.float64, device=self.x0.device)
            for weight in flat
        ]
        return torch.stack(full).reshape(len(rows), 2, batch)
