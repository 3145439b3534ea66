"""What a formula may ask of a step, and the steps of a whole run as its formula wrote them.

A formula is a function `formula(step) -> Form`: the state at the end of the step, over the state at
its start, answers of the model and noise. It is run once for all steps, before the model is called;
every row checks itself here. `lower.py` makes launches of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NoReturn, TypeAlias

import torch
from torch import Tensor

from cmsolvers.checks import describe
from cmsolvers.engine.forms import Form, form_of
from cmsolvers.engine.latest import Latest
from cmsolvers.engine.rows import check_one_normal, check_range, checked_row, settle
from cmsolvers.engine.symbols import Ask, Noise, Past, State, TracedStep
from cmsolvers.processes.coordinates import KARRAS, Coordinates

_FLOAT32 = torch.finfo(torch.float32)

Formula: TypeAlias = Callable[..., Form]
"""`formula(step, **options) -> Form`."""

Span: TypeAlias = tuple[float, float, float, int]
"""(sigma, sigma_hat, sigma_next, kind): noise lifts the state to sigma_hat where that is larger.
The kind is for the formula alone, where its steps are of several."""


class Step:
    """One step of a sampler on noise levels: where it is, and what its formula may ask.

    A level is one of the denoiser's coordinates: sigma of Karras ones, where alpha is 1, t of flow
    coordinates.

    Attributes:
        x: the state at the start.
        sigma: level of x.
        to: level of the result; smaller, at least 0.
        path: alpha and sigma of the levels.
        kind: what the solver's `spans` says of the step, 0 where it has none.
        index: number of the step, from 0.
        count: steps of the run.
        levels: levels at the start of all steps so far; the last is `sigma`.
    """

    def __init__(
        self,
        before: Sequence[TracedStep],
        span: Span,
        count: int,
        *,
        s_noise: float = 1.0,
        may_draw: bool = True,
        path: Coordinates = KARRAS,
    ) -> None:
        index, self.path = len(before), path
        sigma, self.sigma, self.to, self.kind = span
        self.index, self.count = index, count
        self._before, self._normals, self._may_draw = before, 0, may_draw
        self.levels = (*(step.start for step in before), self.sigma)
        state = State(f"x{index}")
        self.x = form_of(state)
        churn = None
        if self.sigma > sigma:
            kept, size = path.noised_to(sigma, self.sigma)
            churn = (Noise(f"churn{index}", (sigma, self.sigma), index), s_noise * size, kept)
        self.traced = TracedStep(sigma, self.sigma, self.to, state, churn)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(no_attribute("a step on noise levels", self, name))

    def D(self, y: Form, level: float) -> Form:
        """The denoiser's answer at y, a state at `level`."""
        _check_question(y, level)
        ask = Ask(f"D{self.index}.{len(self.traced.asks)}", y, level)
        self.traced.asks.append(ask)
        return form_of(ask)

    def map(self, y: Form, level: float, to: float) -> Form:
        """Where a flow map carries y, a state at `level`: the state at `to`."""
        _check_question(y, level)
        ask = Ask(f"f{self.index}.{len(self.traced.asks)}", y, level, to)
        self.traced.asks.append(ask)
        return form_of(ask)

    def slope(self, y: Form, level: float) -> Form:
        """The right side of dx/dlevel: (y - D) / level in Karras and in flow coordinates."""
        slope: Form = self.path.slope(y, self.D(y, level), level)
        return slope

    def toward(self, d: Form, to: float) -> Form:
        """The state at `to` that x leads to if `d` is D all the way: DDIM's step."""
        kept, new = self.path.ddim_weights(self.sigma, to)
        return kept * self.x + new * d

    def z(self, to: float | None = None) -> Form:
        """A unit normal for the way from `sigma` to `to` (the end of the step by default)."""
        if not self._may_draw:
            raise ArithmeticError('a formula that draws noise must be declared with noise="fresh"')
        if to is not None and not 0.0 < to <= self.sigma:
            raise ArithmeticError(f"z(to) must go to a level in (0, {self.sigma:g}]; got {to!r}")
        end = self.to if to is None else to
        self._normals += 1
        return form_of(Noise(f"z{self.index}.{self._normals}", (self.sigma, end), self.index))

    def past(self, k: int) -> Form:
        """D at the start of the k-th step before this one, k from 1."""
        return self._past(k, slope=False)

    def past_slope(self, k: int) -> Form:
        """The slope at the start of the k-th step before this one, k from 1."""
        return self._past(k, slope=True)

    def settled(self, y: Form, level: float) -> Form:
        """A state at `level` that is free of fresh noise, its weight of x made exact: `settle`."""
        return settle(y, self.traced, level, self.path)

    def _past(self, k: int, *, slope: bool) -> Form:
        asked = "past_slope" if slope else "past"
        if k < 1:
            raise IndexError(f"{asked}(k) counts steps back from 1; got {k}")
        if k > self.index:
            raise IndexError(
                f"{asked}({k}) needs {k} steps before this one; step {self.index} has {self.index}"
            )
        step = self._before[-k]
        if step.asks[0].y.terms != {step.x: 1.0}:
            raise ArithmeticError(
                "past D are those at the start of a step; D must be asked there first"
            )
        known = step.kept.get(slope)
        if known is None:
            answer = form_of(step.asks[0])
            meaning = answer
            if slope:
                meaning = self.path.slope(form_of(step.x), answer, step.start)
            known = Past(f"{'d' if slope else 'D'}({step.x})", meaning, slope)
            step.kept[slope] = known
        return form_of(known)


def _check_question(y: object, level: object) -> None:
    """TypeError for what cannot be asked: swapped arguments, tensors."""
    if not (isinstance(y, Form) and isinstance(level, (int, float))):
        raise TypeError(
            "D(y, level) and slope(y, level) take a form and a number; "
            f"got {describe(y)} and {describe(level)}"
        )


def no_attribute(what: str, step: object, name: str) -> str:
    """The error of a formula that asks a step for something else."""
    known = sorted({*vars(step), *dir(type(step))} - {"traced"})
    return f"{what} has no {name!r}; it has {', '.join(k for k in known if k[0] != '_')}"


@dataclass(frozen=True, eq=False)
class Trace:
    """All steps of a run, checked.

    Attributes:
        steps: in order.
        brownian: whether the built-in noise is one Brownian path, not fresh normals.
        coordinate: "sigma", or "t" of an SDE.
        path: the coordinates of states and levels.
    """

    steps: tuple[TracedStep, ...]
    brownian: bool = False
    coordinate: str = "sigma"
    path: Coordinates = KARRAS

    def entry(self, i: int) -> tuple[str, dict[str, float]]:
        """For the callback: what the model's answer is called, and where step i is."""
        step = self.steps[i]
        if self.coordinate == "t":
            return "output", {"i": i, "t": step.start, "t_next": step.to}
        return "denoised", {"i": i, "sigma": step.sigma, "sigma_hat": step.start}

    @cached_property
    def normals(self) -> set[Noise]:
        """All unit normals that are drawn."""
        forms = (f for step in self.steps for f in (step.result, *(ask.y for ask in step.asks)))
        drawn = {symbol for form in forms for symbol in form.terms if isinstance(symbol, Noise)}
        return drawn | {step.churn[0] for step in self.steps if step.churn is not None}

    def kept_for(self, later: int) -> list[Past]:
        """What the steps from number `later` on read of those before, the latest first."""
        if later in (0, len(self.steps)):
            return []
        owners = {
            past: i for i, step in enumerate(self.steps[:later]) for past in step.kept.values()
        }
        steps = self.steps[later:]
        forms = (f for step in steps for f in (step.result, *(ask.y for ask in step.asks)))
        read = {s for form in forms for s in form.terms if isinstance(s, Past) and s in owners}
        return sorted(read, key=lambda past: (-owners[past], past.slope))

    @cached_property
    def maps(self) -> bool:
        """Whether the model is asked as a flow map."""
        return any(ask.to is not None for step in self.steps for ask in step.asks)

    @cached_property
    def levels(self) -> list[float]:
        """The level of each evaluation, in order."""
        return [ask.level for step in self.steps for ask in step.asks]

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """The smallest positive level and the largest."""
        levels = [level for level in (*self.levels, *self.visited) if level > 0]
        return min(levels), max(levels)

    @cached_property
    def visited(self) -> tuple[float, ...]:
        """The level of the state at the start and after each step."""
        return (self.steps[0].sigma, *(step.to for step in self.steps))


MOST_STEPS = 1024
"""Longer runs are not kept: they take memory, and the time of a trace is little beside theirs."""
_TRACES: Latest[Trace] = Latest(128)


def trace(
    formula: Formula,
    spans: tuple[Span, ...],
    options: tuple[tuple[str, object], ...] = (),
    *,
    s_noise: float = 1.0,
    noise: str = "fresh",
    keeps_spread: bool = True,
    path: Coordinates = KARRAS,
) -> Trace:
    """Run a formula over all steps and check its rows; kept, since nothing else enters.

    Args:
        formula: as in `Formula`.
        spans: of the steps.
        options: keyword arguments of the formula.
        s_noise: factor on every noise weight, applied after the check.
        noise: "none" or "churn" where the formula draws none; "fresh"; "Brownian" for one path,
            whose increments nest.
        keeps_spread: whether x = alpha D + sigma z with constant D must end with the spread of the
            last level.
        path: the coordinates of states and levels. Rows are checked where it is straight; on others
            most methods are not exact for constant D.

    Raises:
        ArithmeticError: a formula whose rows are wrong.
        ValueError: levels that float64 cannot make rows of.
    """

    def make() -> Trace:
        return _trace(formula, spans, options, s_noise, noise, keeps_spread, path)

    if len(spans) > MOST_STEPS or not path.is_builtin:
        return make()
    return _TRACES.get((formula, spans, options, s_noise, noise, keeps_spread, path), make)


def _trace(
    formula: Formula,
    spans: tuple[Span, ...],
    options: tuple[tuple[str, object], ...],
    s_noise: float,
    noise: str,
    keeps_spread: bool,
    path: Coordinates,
) -> Trace:
    check_range([span[0] for span in spans] + [spans[-1][2]])
    steps: list[TracedStep] = []
    for i, span in enumerate(spans):
        drawn = noise in ("fresh", "Brownian")
        step = Step(steps, span, len(spans), s_noise=s_noise, may_draw=drawn, path=path)
        try:
            result = formula(step, **dict(options))
            if not isinstance(result, Form):
                raise TypeError(f"a formula must return a form; it returned {result!r}")
            traced = step.traced
            if noise != "Brownian":
                check_one_normal(traced, result)
            for ask in traced.asks:
                ask.y = checked_row(ask.y, traced, ask.level, keeps_spread, s_noise, path)
            traced.result = checked_row(result, traced, step.to, keeps_spread, s_noise, path)
        except ZeroDivisionError as error:
            raise ValueError(_divided_by_zero(formula, step)) from error
        except OverflowError as error:
            raise ValueError(_overflowed(formula, i, options)) from error
        except (ArithmeticError, AttributeError, IndexError, TypeError) as error:
            error.args = (f"step {i} of {_name(formula)}: {error}",)
            raise
        steps.append(traced)
    return Trace(tuple(steps), brownian=noise == "Brownian", path=path)


def _name(formula: Formula) -> str:
    return getattr(formula, "__name__", "the formula")


def _divided_by_zero(formula: Formula, step: Step) -> str:
    if step.to == 0:
        return f"{_name(formula)} divides by 0 in a step to 0; a formula must allow step.to == 0"
    near = ", ".join(repr(level) for level in step.levels[-3:])
    return (
        f"sigmas must be far enough apart for the weights of a step; got {step.to!r} after {near}"
    )


def _overflowed(formula: Formula, i: int, options: Sequence[tuple[str, object]]) -> str:
    """For a weight that float64 does not hold: which options it may come of."""
    given = ", ".join(f"{name} = {describe(value)}" for name, value in options)
    return (
        f"step {i} of {_name(formula)}: options must be such that float64 holds the weights, at "
        f"most 1.8e308 in size; got {given or 'none'}"
    )


def lifted(
    sigmas: Sequence[float],
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    path: Coordinates = KARRAS,
) -> tuple[Span, ...]:
    """Steps from each level to the next, with the levels that churn lifts the states to.

    It is sigma / alpha that churn multiplies.

    Source: Karras et al. (2022), algorithm 2.
    """
    if not s_churn:
        return tuple((s, s, to, 0) for s, to in pairwise(sigmas))
    found, count = [], len(sigmas) - 1
    for sigma, to in pairwise(sigmas):
        gamma = min(s_churn / count, math.sqrt(2.0) - 1.0) if s_tmin <= sigma <= s_tmax else 0.0
        start, ratio = sigma, path.ratio(sigma)
        if gamma and math.isfinite(ratio):  # else there is nothing but noise
            start = min(max(sigma, path.level(ratio * (1.0 + gamma))), path.max_level)
        found.append((sigma, start, to, 0))
    return tuple(found)


def state_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the states of a run from x: half precision would round away what small steps add."""
    return torch.promote_types(x.dtype, torch.float32)


def check_held(traced: Trace, dtype: torch.dtype) -> None:
    """ValueError for levels that float32 does not hold, where the states are float32 or less."""
    if dtype is torch.float64 or traced.coordinate != "sigma":
        return
    smallest, largest = traced.extremes
    for level in (smallest, largest):
        if not _FLOAT32.tiny <= level <= _FLOAT32.max:
            raise ValueError(
                f"{'times' if traced.maps else 'sigmas'} must be levels that float32 holds where x "
                f"is {dtype}; got {level:g}"
            )
