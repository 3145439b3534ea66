"""How the loop runs guided and clipped denoisers: their arithmetic goes into the step's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.denoisers.clipping import Clipped
from cmsolvers.denoisers.composed import Composed, folds
from cmsolvers.denoisers.guidance import Guided
from cmsolvers.denoisers.pairing import alike, asked, halves, joined_arguments, twice
from cmsolvers.denoisers.preconditioning import Coefficients
from cmsolvers.engine import models
from cmsolvers.engine.launch import Launcher, per_level
from cmsolvers.engine.plan import Plan, Stage
from cmsolvers.ops.step import MAX_INPUTS


class _Side:
    """One model of a guided denoiser on the levels of a plan; a plain callable has F = D."""

    def __init__(self, denoiser: Any, x: Tensor, plan: Plan, extra: Mapping[str, Any]) -> None:
        raw = folds(denoiser)
        self._name = "net" if raw else plan.argument
        self._call = denoiser.network if raw else denoiser
        self._dtype = (denoiser.dtype or x.dtype) if raw else x.dtype
        self.scalings = [
            denoiser.coefficients(s) if raw else Coefficients(0.0, 1.0, 1.0, s) for s in plan.levels
        ]
        self._extra, self._state_dtype = extra, x.dtype
        dtype = models.noise_dtype(x) if raw else x.dtype
        self._noise = per_level([c.c_noise for c in self.scalings], x, dtype)

    def scale(self, j: int) -> float | None:
        """c_in of evaluation j, None where the model's input is the state itself."""
        return models.input_scale(self.scalings[j], self._dtype, self._state_dtype)

    def input(self, j: int, y: Tensor) -> Tensor:
        """What the model is shown of y."""
        c_in = self.scale(j)
        return y if c_in is None else ops.scale_input(y, c_in, dtype=self._dtype)

    def output(self, j: int, y: Tensor, shown: Tensor) -> Tensor:
        """F."""
        return check.model_output(self._name, self._call(shown, self._noise(j), **self._extra), y)

    def both(
        self, j: int, y: Tensor, shown: Tensor, extra: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        """F with its own and with the other arguments, from one call."""
        f = self._call(twice(shown), twice(self._noise(j)), **extra)
        like = y.new_empty(1).expand(2 * y.shape[0], *y.shape[1:])
        return halves(check.model_output(self._name, f, like))


class _Guided(models.Direct):
    """What the two below share: the outputs of both sides, and D of them."""

    def __init__(
        self, denoiser: Guided, x: Tensor, plan: Plan, launcher: Launcher, extra: Mapping[str, Any]
    ) -> None:
        super().__init__(denoiser, x, plan, launcher, extra)
        denoiser.check_batch(x)
        args = denoiser.arguments(extra)
        pairs = zip(denoiser.sides, args, strict=True)
        self._sides = [_Side(side, x, plan, own) for side, own in pairs]
        self._both = joined_arguments(*args, x.shape[0]) if denoiser.one_call else None
        self._shared = denoiser.sides[0] is denoiser.sides[1]
        self._asked: list[tuple[int, ...]] = []
        self._terms: list[list[Any]] = []
        for j, level in enumerate(plan.levels):
            weights = denoiser.weights(level)
            at = asked(weights)
            both = [(weights[k], *self._sides[k].scalings[j][:2]) for k in at]
            self._asked.append(at)
            self._terms.append([sum(w * skip for w, skip, _ in both), *(w * c for w, _, c in both)])
        self._ready: Tensor | None = None

    def _outputs(self, j: int, y: Tensor) -> tuple[Tensor, ...]:
        """F of the sides that have a weight, the conditional one first."""
        shown, self._ready = self._ready, None
        at = self._asked[j]
        if len(at) == 2 and self._both is not None:
            side = self._sides[0]
            return side.both(j, y, side.input(j, y) if shown is None else shown, self._both)
        found: list[Tensor] = []
        for k in at:
            if shown is None or (found and not self._shared):
                shown = self._sides[k].input(j, y)
            found.append(self._sides[k].output(j, y, shown))
        return tuple(found)

    def _join(self, j: int, y: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        return ops.weighted_step(y, alike(outputs, y.dtype), self._terms[j])


class _Joined(_Guided):
    """A plan that needs D: one launch makes it of both outputs."""

    def evaluate(self, j: int, y: Tensor) -> tuple[Tensor, ...]:
        """D."""
        return (self._join(j, y, self._outputs(j, y)),)


class _JoinedSlopes(_Joined, models.DirectSlopes):
    """The same for a plan on slopes."""


class _FoldedGuided(models.Folding, _Guided):
    """Rows rewritten over the outputs of both sides."""

    def __init__(
        self, denoiser: Guided, x: Tensor, plan: Plan, launcher: Launcher, extra: Mapping[str, Any]
    ) -> None:
        super().__init__(denoiser, x, plan, launcher, extra)
        self._fold(self._terms)

    def _scale(self, j: int) -> float | None:
        """c_in of the first side; the other one's input is made when it is asked."""
        first = self._shared or self._asked[j][0] == 0
        return self._sides[0].scale(j) if first else None

    def evaluate(self, j: int, y: Tensor) -> tuple[Tensor, ...]:
        """F of both sides, or of one."""
        return self._outputs(j, y)

    def denoised(self, j: int, y: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """D, for a callback."""
        return self._join(j, y, outputs)


class _ClippedCallable(models.Direct):
    """One evaluation a step: the step clamps D."""

    def __init__(
        self, denoiser: Clipped, x: Tensor, plan: Plan, launcher: Launcher, extra: Mapping[str, Any]
    ) -> None:
        super().__init__(denoiser.inner, x, plan, launcher, extra)
        self._clipped = denoiser

    def denoised(self, j: int, y: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """D clamped, for a callback."""
        return self._clipped.rewrite(y, outputs[0])

    def advance(
        self,
        j: int,
        x: Tensor,
        stage: Stage,
        outputs: list[Tensor],
        past: list[Tensor],
        how: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """(y, D clamped), the latter only where the plan keeps it."""
        row, how = (stage.w_x, *stage.w_d, *stage.w_past), {**how, "clamp": self._clipped.bounds}
        if self._plan.keep:
            form = row, (0.0, 1.0)
            return models.keeping(self._launcher, x, outputs, past, form, stage.w_z, how)
        return self._launcher.step(x, outputs, row, w_z=stage.w_z, **how), outputs[0]


class _ClippedNetwork(models.Folded):
    """One evaluation a step: the step makes D of F and clamps it."""

    def __init__(
        self, denoiser: Clipped, x: Tensor, plan: Plan, launcher: Launcher, extra: Mapping[str, Any]
    ) -> None:
        super().__init__(denoiser.inner, x, plan, launcher, extra)
        self._bounds = denoiser.bounds

    def denoised(self, j: int, y: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """D clamped, for a callback."""
        return _clamped(y, outputs[0], self._scalings[j], self._bounds)

    def advance(
        self,
        j: int,
        x: Tensor,
        stage: Stage,
        outputs: list[Tensor],
        past: list[Tensor],
        how: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """(y, D clamped), the latter only where the plan keeps it."""
        row, basis = (stage.w_x, *stage.w_d, *stage.w_past), self._scalings[j][:2]
        how = {**how, "clamp": self._bounds}
        if self._plan.keep:
            return models.keeping(self._launcher, x, outputs, past, (row, basis), stage.w_z, how)
        y = self._with_input(x, outputs, row, self._next[j], w_z=stage.w_z, x0=basis, **how)
        return y, outputs[0]


class _ClippedJoin(models.Raw):
    """Every other plan: the launch that makes D of F clamps it."""

    def __init__(
        self, denoiser: Clipped, x: Tensor, plan: Plan, launcher: Launcher, extra: Mapping[str, Any]
    ) -> None:
        super().__init__(denoiser.inner, x, plan, launcher, extra)
        self._bounds = denoiser.bounds

    def _join(self, j: int, y: Tensor, f: Tensor) -> Tensor:
        return _clamped(y, f, self._scalings[j], self._bounds)


class _ClippedJoinSlopes(_ClippedJoin, models.DirectSlopes):
    """The same for a plan on slopes."""


def _clamped(y: Tensor, f: Tensor, scalings: Coefficients, bounds: tuple[float, float]) -> Tensor:
    return ops.weighted_step(y, (f,), (0.0, 1.0), x0=scalings[:2], clamp=bounds)


def model_class(denoiser: Any, plan: Plan) -> type[models.Direct]:
    """How to run this denoiser on this plan."""
    if isinstance(denoiser, Guided):
        return _guided_class(denoiser, plan)
    if isinstance(denoiser, Clipped):
        slopes = plan.keep and plan.slopes
        single = plan.width == 1 and not slopes
        if folds(denoiser.inner):
            if single:
                return _ClippedNetwork
            return _ClippedJoinSlopes if slopes else _ClippedJoin
        if single:
            return _ClippedCallable
    return models.model_class(denoiser, plan)


def _guided_class(denoiser: Guided, plan: Plan) -> type[models.Direct]:
    if denoiser.rescale or any(isinstance(side, Composed) for side in denoiser.sides):
        return models.model_class(denoiser, plan)  # D of both sides is needed
    if plan.keep:
        return _JoinedSlopes if plan.slopes else _Joined
    # Two outputs a stage, and noise that a noise_sampler may hand in.
    widest = max(
        2 * len(step.stages) + any(stage.w_z for stage in step.stages) for step in plan.steps
    )
    return _FoldedGuided if widest <= MAX_INPUTS else _Joined
