"""A step is a row of weights: what a solver hands to the one loop, and what the loop makes of it.

A solver is a formula. From the levels so far (the last is where the state is) and the next level
it gives the stages of one step. Stage k evaluates the denoiser, D_k = D(y_k, level of y_k) with
y_0 = x, and makes

    y_{k+1} = w_x x + sum_j w_d[j] D_j + sum_j w_past[j] (D_0 of the j-th step before) + w_z z

at level `to`; the last y is the new state. A multistep formula may ask for past slopes
d = (x - D) / sigma in place of past D. All numbers are host float64. Every row checks itself when
it is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

_TOLERANCE = 1e-10
_SMALLEST, _LARGEST = 1e-50, 1e50  # rows hold products of ratios of levels


@dataclass(frozen=True, slots=True)
class Stage:
    """One evaluation and the combination that follows it.

    Args:
        to: the level the result is at.
        w_x: weight of the state at the start of the step.
        w_d: weights of D_0 ... D_k of this step.
        w_past: weights of D_0 of the steps before, latest first; of their slopes where the plan
            keeps slopes.
        w_z: weight of fresh unit noise, before s_noise.
        exact: whether the row moves x = D + s z with constant D to exactly the spread `to`.
    """

    to: float
    w_x: float
    w_d: tuple[float, ...]
    w_past: tuple[float, ...] = ()
    w_z: float = 0.0
    exact: bool = True

    def check(self, level: float, slopes: bool = False) -> None:
        """Raise ArithmeticError if the row is wrong for a state at `level`.

        With constant D and x = D + s z every slope is z: past ones then carry spread and no D.
        """
        past = () if slopes else self.w_past
        row = (self.w_x, *self.w_d, *past)
        size = math.fsum(map(abs, row))
        if not abs(math.fsum(row) - 1.0) <= _TOLERANCE * size:
            raise ArithmeticError(f"weights must sum to 1 for constant D; {self} gives {sum(row)}")
        if self.exact:
            carried = (self.w_x * level, *(self.w_past if slopes else ()))
            spread, wanted = math.hypot(math.fsum(carried), self.w_z), self.to
            if not abs(spread - wanted) <= _TOLERANCE * (math.fsum(map(abs, carried)) + wanted):
                raise ArithmeticError(
                    f"the spread must be {wanted}; {self} from {level} gives {spread}"
                )


@dataclass(frozen=True, slots=True)
class Churn:
    """Noise added before a step: gamma = min(s_churn / steps, sqrt 2 - 1) inside [s_tmin, s_tmax].

    Source: Karras et al. (2022), algorithm 2.
    """

    s_churn: float
    s_tmin: float
    s_tmax: float

    def gamma(self, sigma: float, steps: int) -> float:
        """sigma_hat / sigma - 1."""
        inside = self.s_tmin <= sigma <= self.s_tmax
        return min(self.s_churn / steps, math.sqrt(2.0) - 1.0) if inside else 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """From `sigma`, by noise of weight `churn` to `sigma_hat`, by the stages to the next level."""

    sigma: float
    sigma_hat: float
    churn: float
    stages: tuple[Stage, ...]


Formula: TypeAlias = Callable[[Sequence[float], float], tuple[Stage, ...]]


@dataclass(frozen=True)
class Plan:
    """All steps of a run.

    Args:
        name: the sampler, for progress bars.
        steps: in order.
        keep: how many past D the rows read.
        argument: what the model is called in the sampler's signature, for error texts.
        slopes: whether those are slopes (x - D) / sigma; every step then has one stage.
        brownian: whether the built-in noise is one Brownian path, not fresh normals.
    """

    name: str
    steps: tuple[Step, ...]
    keep: int = 0
    argument: str = "denoiser"
    slopes: bool = False
    brownian: bool = False

    @cached_property
    def noisy(self) -> bool:
        """Whether any row asks for noise."""
        return any(step.churn or any(stage.w_z for stage in step.stages) for step in self.steps)

    @cached_property
    def levels(self) -> list[float]:
        """The level of each evaluation, in order."""
        return [
            level
            for step in self.steps
            for level in (step.sigma_hat, *(stage.to for stage in step.stages[:-1]))
        ]

    @cached_property
    def visited(self) -> tuple[float, ...]:
        """The level of the state at the start and after each step."""
        return (self.steps[0].sigma, *(step.stages[-1].to for step in self.steps))

    @cached_property
    def width(self) -> int:
        """Stages of the longest step."""
        return max(len(step.stages) for step in self.steps)


@lru_cache(maxsize=128)
def make_plan(
    name: str,
    sigmas: tuple[float, ...],
    formula: Formula,
    *,
    churn: Churn | None = None,
    s_noise: float = 1.0,
    keep: int = 0,
    argument: str = "denoiser",
    keep_slopes: bool = False,
    brownian: bool = False,
) -> Plan:
    """The rows of a whole run, checked; cached, because they depend on nothing else.

    Args:
        name: the sampler.
        sigmas: checked levels.
        formula: levels so far (one a step, the last where the state is), next level -> stages.
        churn: noise added before each step.
        s_noise: factor on every noise weight.
        keep: how many past D the formula uses.
        argument: what the sampler calls the model.
        keep_slopes: keep slopes (x - D) / sigma of past steps, which `w_past` then weighs; for
            formulas of one stage.
        brownian: draw the noise from one Brownian path, as rows whose increments nest must.

    Raises:
        ArithmeticError: a formula whose rows are wrong.
        ValueError: levels that float64 cannot make rows of.
    """
    check_range(sigmas)
    steps, levels, count = [], [], len(sigmas) - 1
    for sigma, following in pairwise(sigmas):
        gamma = churn.gamma(sigma, count) if churn else 0.0
        levels.append(sigma * (1.0 + gamma))
        try:
            stages = formula(tuple(levels), following)
        except ZeroDivisionError as error:
            raise ValueError(
                "sigmas must be far enough apart for the weights of a step; "
                f"got {following!r} after {', '.join(map(repr, levels[-3:]))}"
            ) from error
        if keep_slopes and len(stages) > 1:
            raise ArithmeticError(f"slopes are kept of one stage a step; got {len(stages)}")
        for stage in stages:
            stage.check(levels[-1], keep_slopes)
        stages = tuple(replace(stage, w_z=s_noise * stage.w_z) for stage in stages)
        # sqrt(sigma_hat^2 - sigma^2) without the cancellation
        noise = s_noise * sigma * math.sqrt(gamma * (2.0 + gamma))
        steps.append(Step(sigma, levels[-1], noise, stages))
    return Plan(name, tuple(steps), keep, argument, keep_slopes, brownian)


def check_range(sigmas: Sequence[float]) -> None:
    """Raise ValueError for levels that are too large or too small for the weights of a row."""
    for i, level in enumerate(sigmas):
        if level and not _SMALLEST <= level <= _LARGEST:
            raise ValueError(
                f"sigmas must lie in [{_SMALLEST:g}, {_LARGEST:g}] or be 0; got {level:g} at "
                f"index {i}"
            )


def slope_row(s: float, to: float, past: Sequence[float]) -> tuple[Stage, ...]:
    """X' = x + w d + sum_j past[j] d_j from level s, written with x and D.

    A constant slope must be integrated exactly, so w is what `past` leaves of s' - s: past weights
    of levels that nearly coincide are large and would not sum to it, each rounded by itself.
    """
    own = math.fsum((to, -s, *(-w for w in past)))
    return (Stage(to, math.fsum((to, *(-w for w in past))) / s, (-own / s,), tuple(past)),)


def slope_basis(
    stage: Stage, level: float, skip_out: tuple[float, float]
) -> tuple[tuple[float, ...], tuple[float, float]]:
    """A row over (x, d, past d) and the (a, b) of d = a x + b F, for a state at `level`.

    D = c_skip x + c_out F with `skip_out` = (c_skip, c_out); D = x - level d.
    """
    (w_d,), (c_skip, c_out) = stage.w_d, skip_out
    row = (stage.w_x + w_d, -level * w_d, *stage.w_past)
    return row, ((1.0 - c_skip) / level, -c_out / level)


def fold(stages: Sequence[Stage], skip_out: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows over (x, all F of the stages so far), where D_k = c_skip y_k + sum c_out F.

    `skip_out` holds (c_skip, c_out, ...) of each stage, one c_out for every output that it reads:
    numbers, or tensors with one entry a sample. Where c_skip is not 0, no stage but the last may
    have noise. Everything is linear, so the skip part of D_k is rewritten through the row that made
    y_k.
    """
    count = sum(len(weights) - 1 for weights in skip_out)
    state: list[Any] = [1.0] + [0.0] * count
    denoised: list[list[Any]] = []
    rows, used = [], 1
    for stage, (c_skip, *c_outs) in zip(stages, skip_out, strict=True):
        own = [c_skip * w for w in state]
        for c_out in c_outs:
            own[used] += c_out
            used += 1
        denoised.append(own)
        state = [stage.w_x] + [0.0] * count
        for w, terms in zip(stage.w_d, denoised, strict=True):
            state = [a + w * b for a, b in zip(state, terms, strict=True)]
        rows.append(state[:used])
    return rows
