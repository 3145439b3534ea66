"""How a flow map's answer moves as its start or its end moves: the residuals of continuous losses.

For f_{t->s} = a x + b F and a velocity v of the ODE,

- d/dt f_{t->s}(x_t) = (a v + b' F) + (a' x + b dF/dt), which is 0 for the exact map;
- d/ds f_{t->s}(x) - v(f, s) = a_s x + b_s F + b dF/ds - v(f, s), likewise.

Both are made without gradient. Gradients come from F run again, which `pull` moves against them.

Source: Song et al., "Consistency Models" (2023), theorems 5 and 6; Lu & Song, "Simplifying,
Stabilizing and Scaling Continuous-Time Consistency Models" (2025), section 2.2 and 4; Sabour et
al., "Align Your Flow" (2025), section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers import Preconditioned
from cmsolvers.denoisers.flow_maps import FlowMap
from cmsolvers.losses.derivatives.total_derivative import Method, total_derivative
from cmsolvers.losses.evaluation.combination import Combination, Weight, of
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.identities import raw_derivative

StartMethod: TypeAlias = Literal["jvp", "finite_difference", "discrete"]
"""How dF/dt is found along a trajectory."""


@dataclass(frozen=True, eq=False)
class Motion:
    """How f moves, in two parts, both without gradient.

    Attributes:
        raw: the student's F, with gradient.
        fixed: the same without.
        sign: that of b' on the diagonal, by which f and F point the same way or opposite ways.
        straight: a v + b' F; for the end, a_s x + b_s F - v(f, s).
        turning: a' x + b dF/dt, the part that a warm-up holds back; for the end, b dF/ds.
    """

    raw: Tensor
    fixed: Tensor
    sign: Weight
    straight: Combination
    turning: Combination


def start_motion(
    at: Evaluation,
    x: State,
    end: Tensor,
    velocity: Tensor,
    *,
    derivative: StartMethod = "jvp",
    gap: float = 1e-4,
) -> Motion:
    """d/dt f_{t->s}(x_t) along a velocity [B, ...].

    Args:
        at: the evaluation; `at.target` is the f that moves.
        x: the state at t.
        end: s, float64 [B].
        velocity: v(x, t).
        derivative: "jvp", "finite_difference", or "discrete": from F at the next point of the
            circle, `gap` below t (TrigFlow coordinates).
        gap: of "discrete", in radians.

    Raises:
        ValueError: another kind of model, an unknown derivative.
    """
    check.choice("derivative", derivative, ("jvp", "finite_difference", "discrete"))
    student, view = at.student.flow_map(), at.target
    inner = view.flow_map()
    made = at.student.raw(x, end)
    fixed = moving = made.detach()
    if derivative == "discrete":
        if view is not at.frozen:
            moving = view.raw(x, end)
        rate = _along_the_circle(at, x, end, velocity, moving, check.positive("gap", gap))
    else:
        found = raw_derivative(at, view, x, end, (velocity, 1.0, 0.0), derivative)
        if view is not at.frozen:
            moving = found.value
        rate = of(found.derivative)
    a, b = inner.skip_out(x.level, end)
    a_rate, b_rate = inner.start_rates(x.level, end)
    return Motion(
        made,
        fixed,
        _sign(student.start_rates(x.level, x.level)[1]),
        Combination([(velocity, a), (moving, b_rate)]),
        of(x.x) * a_rate + rate * b,
    )


def end_motion(at: Evaluation, x: State, end: Tensor, *, derivative: Method = "jvp") -> Motion:
    """d/ds f_{t->s}(x) - v(f, s), with the teacher's velocity.

    Args:
        at: the evaluation; `at.target` is the f that moves.
        x: the state at t.
        end: s, float64 [B].
        derivative: "jvp" or "finite_difference".

    Raises:
        ValueError: another kind of model, no teacher.
    """
    student, view = at.student.flow_map(), at.target
    inner = view.flow_map()
    made = at.student.raw(x, end)
    fixed = moving = made.detach()
    found = raw_derivative(at, view, x, end, (None, 0.0, 1.0), derivative)
    if view is not at.frozen:
        moving = found.value
    a, b = inner.skip_out(x.level, end)
    a_rate, b_rate = inner.end_rates(x.level, end)
    slope = at.teacher_velocity(x.at(Combination([(x.x, a), (moving, b)]), end))
    straight = Combination([(moving, b_rate), (slope, -1.0)]) + of(x.x) * a_rate
    sign = _sign(student.end_rates(x.level, x.level)[1])
    return Motion(made, fixed, sign, straight, of(found.derivative) * b)


def map_rate(
    at: Evaluation, x: State, velocity: Tensor, *, derivative: Method = "jvp"
) -> tuple[Combination, Combination]:
    """f_{t->0}(x), with gradient, and d/dt f^-_{t->0}(x_t) without, for any consistency function.

    f^- is `at.target`. A callable that is no module of the library is differentiated as a whole.

    Args:
        at: the evaluation.
        x: the state at t.
        velocity: v(x, t), [B, ...].
        derivative: "jvp" or "finite_difference".
    """
    made, view = at.student(x), at.target
    inner = view.inner
    if isinstance(inner, (FlowMap, Preconditioned)):
        end = torch.zeros_like(x.level)
        found = raw_derivative(at, view, x, end, (velocity, 1.0, 0.0), derivative)
        a, b = inner.skip_out(x.level, end)
        a_rate, b_rate = inner.start_rates(x.level, end)
        terms = [(x.x, a_rate), (velocity, a), (found.value, b_rate), (found.derivative, b)]
        return made, Combination(terms)
    dtype = torch.promote_types(x.x.dtype, torch.float32)

    def whole(state: Tensor, level: Tensor) -> Tensor:
        return check.model_output(
            view.name, view.model(state, level.to(dtype), **view.extra), state
        )

    low = torch.zeros_like(x.level)
    with view.passing():
        found = total_derivative(
            whole,
            (x.x, x.level),
            (velocity, 1.0),
            method=derivative,
            bounds=(None, (low, at.path.max_level)),
        )
    if found.error is not None:
        at.diagnostics["derivative_error"] = found.error
    return made, of(found.derivative)


def pull(motion: Motion, tangent: Combination) -> Combination:
    """F - sg(F) + sign(b') tangent: half the gradient of its square is that of F^T tangent.

    It moves f against the tangent, whatever the sign with which F enters f.
    """
    return Combination([(motion.raw, 1.0), (motion.fixed, -1.0)]) + tangent * motion.sign


def _along_the_circle(
    at: Evaluation, x: State, end: Tensor, velocity: Tensor, made: Tensor, gap: float
) -> Combination:
    """(cos h F(x, t) - F(cos h x - sin h v, t - h)) / sin h, h = gap, at most t.

    The step is exact where x_0 and z are constant along it, and so is f of a constant x_0.
    """
    h = x.level.clamp(max=gap)
    level = x.level - h
    moved = x.at(Combination([(x.x, h.cos()), (velocity, -h.sin())]), level)
    before = at.target.raw(moved, torch.minimum(end, level))
    sine = h.sin().clamp_min(torch.finfo(torch.float64).tiny)
    return Combination([(made, h.cos() / sine), (before, -1.0 / sine)])


def _sign(value: Any) -> Weight:
    return value.sign() if isinstance(value, Tensor) else math.copysign(1.0, value)


def ratio_rate(at: Evaluation, level: Tensor) -> Tensor:
    """d level / d ratio of noise to data, float64 [B]: 1 in Karras coordinates."""
    alpha, sigma = at.path.alpha(level), at.path.sigma(level)
    alpha_rate, sigma_rate = at.path.pair_rates(level)
    return alpha * alpha / (sigma_rate * alpha - sigma * alpha_rate)
