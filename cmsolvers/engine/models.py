"""How the loop evaluates a model and advances the state: preconditioning folds into the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.denoisers.composed import Composed, folds
from cmsolvers.denoisers.pairing import alike
from cmsolvers.denoisers.preconditioning import Coefficients
from cmsolvers.engine.launch import Launcher, per_level
from cmsolvers.engine.plan import Plan, Stage, fold, slope_basis


def noise_dtype(x: Tensor) -> torch.dtype:
    """Of a network's c_noise, for states like x."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def input_scale(scalings: Coefficients, network: torch.dtype, state: torch.dtype) -> float | None:
    """c_in, or None where the network's input is the state itself."""
    c_in: float = scalings.c_in
    return None if c_in == 1.0 and network is state else c_in


class Direct:
    """A denoiser that is just a callable: rows act on D itself."""

    def __init__(
        self, denoiser: Any, x: Tensor, plan: Plan, launcher: Launcher, extra: Mapping[str, Any]
    ) -> None:
        self._denoiser, self._launcher, self._extra = denoiser, launcher, extra
        self._plan = plan
        self._name = plan.argument
        self._levels = per_level(plan.levels, x, x.dtype)

    def evaluate(self, j: int, y: Tensor) -> tuple[Tensor, ...]:
        """What the rows read of the model at y, evaluation j."""
        if isinstance(self._denoiser, Composed):
            d = self._denoiser.at(y, self._levels(j), self._plan.levels[j], self._extra)
        else:
            d = self._denoiser(y, self._levels(j), **self._extra)
        return (check.model_output(self._name, d, y),)

    def denoised(self, j: int, y: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """D for what `evaluate` returned."""
        return outputs[0]

    def churn(self, j: int, x: Tensor, w_z: float, how: dict[str, Any]) -> Tensor:
        """X with the noise that lifts it to the level of evaluation j."""
        return self._launcher.step(x, (), (1.0,), w_z=w_z, **how)  # type: ignore[no-any-return]

    def advance(
        self,
        j: int,
        x: Tensor,
        stage: Stage,
        outputs: list[Tensor],
        past: list[Tensor],
        how: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """(y after evaluation j, D_0 of the step)."""
        row = (stage.w_x, *stage.w_d, *stage.w_past)
        # A model may change its dtype from step to step, where a past D has the other one.
        inputs = alike((*outputs, *past[: len(stage.w_past)]), x.dtype)
        y = self._launcher.step(x, inputs, row, w_z=stage.w_z, **how)
        return y, outputs[0]


class DirectSlopes(Direct):
    """A multistep plan on slopes: the launch of a step also gives d = (x - D) / sigma."""

    def advance(
        self,
        j: int,
        x: Tensor,
        stage: Stage,
        outputs: list[Tensor],
        past: list[Tensor],
        how: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """(y, d)."""
        form = slope_basis(stage, self._plan.levels[j], (0.0, 1.0))
        return keeping(self._launcher, x, outputs, past, form, stage.w_z, how)


class Raw(Direct):
    """A preconditioned network, D made of F by one more step: right for every plan."""

    def __init__(
        self, denoiser: Any, x: Tensor, plan: Plan, launcher: Launcher, extra: Mapping[str, Any]
    ) -> None:
        self._denoiser, self._launcher, self._extra = denoiser, launcher, extra
        self._plan = plan
        self._state_dtype = x.dtype
        self._dtype: torch.dtype = denoiser.dtype or x.dtype
        self._scalings = [denoiser.coefficients(level) for level in plan.levels]
        self._noise = per_level([c.c_noise for c in self._scalings], x, noise_dtype(x))
        self._ready: Tensor | None = None

    def _raw(self, j: int, y: Tensor) -> Tensor:
        """F at evaluation j, from the input that the step before left or one made now."""
        ready, self._ready = self._ready, None
        if ready is None:
            c_in = input_scale(self._scalings[j], self._dtype, self._state_dtype)
            ready = y if c_in is None else self._launcher.scaled(y, c_in)
        f = self._denoiser.network(ready, self._noise(j), **self._extra)
        return check.model_output("net", f, y)

    def _join(self, j: int, y: Tensor, f: Tensor) -> Tensor:
        return ops.weighted_step(y, (f,), self._scalings[j][:2])

    def evaluate(self, j: int, y: Tensor) -> tuple[Tensor, ...]:
        """D."""
        f = self._raw(j, y)
        self._launcher.observe(f)
        return (self._join(j, y, f),)


class _Kept(Raw):
    """A multistep plan on F: each step is one launch that also gives D, to be kept."""

    def evaluate(self, j: int, y: Tensor) -> tuple[Tensor, ...]:
        """F."""
        return (self._raw(j, y),)

    def denoised(self, j: int, y: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """D, for a callback."""
        return self._join(j, y, outputs[0])

    def advance(
        self,
        j: int,
        x: Tensor,
        stage: Stage,
        outputs: list[Tensor],
        past: list[Tensor],
        how: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """(y, what is kept of the step): the second output."""
        return keeping(self._launcher, x, outputs, past, self._form(j, stage), stage.w_z, how)

    def _form(self, j: int, stage: Stage) -> tuple[tuple[float, ...], tuple[float, float]]:
        """The row over (x, m, past m) and the basis: m = c_skip x + c_out F = D."""
        return (stage.w_x, *stage.w_d, *stage.w_past), self._scalings[j][:2]


class _KeptSlopes(_Kept):
    """A multistep plan on slopes and F: the second output is d."""

    def _form(self, j: int, stage: Stage) -> tuple[tuple[float, ...], tuple[float, float]]:
        return slope_basis(stage, self._plan.levels[j], self._scalings[j][:2])


class Folding(Direct):
    """A one-step plan with rows over what the model returns; each step leaves c_in x' for the next.

    A class beside it gives `_scale` and reads `_ready`.
    """

    def _fold(self, terms: Sequence[Sequence[Any]]) -> None:
        """Rows of the plan, from the (c_skip, c_out, ...) of every evaluation."""
        self._ready: Tensor | None = None
        self._rows: list[list[Any]] = []
        self._next: list[float | None] = []
        steps = self._plan.steps
        for step, after in zip(steps, (*steps[1:], None), strict=True):
            at, count = len(self._rows), len(step.stages)
            self._rows += fold(step.stages, terms[at : at + count])
            direct = after is not None and not after.churn
            self._next += [self._scale(at + k + 1) for k in range(count - 1)]
            self._next.append(self._scale(at + count) if direct else None)

    def _scale(self, j: int) -> float | None:
        """c_in of evaluation j, None where its input is the state itself."""
        raise NotImplementedError

    def churn(self, j: int, x: Tensor, w_z: float, how: dict[str, Any]) -> Tensor:
        """As for D, and c_in x' with it."""
        return self._with_input(x, (), (1.0,), self._scale(j), w_z=w_z, **how)

    def advance(
        self,
        j: int,
        x: Tensor,
        stage: Stage,
        outputs: list[Tensor],
        past: list[Tensor],
        how: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """(y, F_0): nothing reads D_0 later."""
        row, second = self._rows[j], self._next[j]
        return self._with_input(x, outputs, row, second, w_z=stage.w_z, **how), outputs[0]

    def _with_input(
        self, x: Tensor, inputs: Any, row: Any, second: float | None, **how: Any
    ) -> Tensor:
        result = self._launcher.step(x, inputs, row, second=second, **how)
        if second is None:
            return result  # type: ignore[no-any-return]
        y, self._ready = result
        return y  # type: ignore[no-any-return]


class Folded(Folding, _Kept):
    """A one-step plan on F."""

    def __init__(
        self, denoiser: Any, x: Tensor, plan: Plan, launcher: Launcher, extra: Mapping[str, Any]
    ) -> None:
        super().__init__(denoiser, x, plan, launcher, extra)
        self._fold([c[:2] for c in self._scalings])

    def _scale(self, j: int) -> float | None:
        return input_scale(self._scalings[j], self._dtype, self._state_dtype)


def keeping(
    launcher: Launcher,
    x: Tensor,
    outputs: list[Tensor],
    past: list[Tensor],
    form: tuple[Sequence[float], tuple[float, float]],
    w_z: float,
    how: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """(x', m) in one launch: x' = row . (x, m, past), m = basis . (x, output)."""
    row, basis = form
    inputs = alike((*outputs, *past[: len(row) - 2]), x.dtype)
    result: tuple[Tensor, Tensor] = launcher.step(
        x, inputs, row, w_z=w_z, **how, second="x0", x0=basis
    )
    return result


def model_class(denoiser: Any, plan: Plan) -> type[Direct]:
    """How to run this denoiser on this plan."""
    if not folds(denoiser):
        return DirectSlopes if plan.keep and plan.slopes else Direct
    if plan.keep:
        if plan.slopes:
            return _KeptSlopes
        return _Kept if plan.width == 1 else Raw
    early_noise = any(stage.w_z for step in plan.steps for stage in step.stages[:-1])
    return Raw if early_noise else Folded
