"""The identities of a flow map that hold for its rates, as residuals that are 0 for the exact one.

With f_{t->s} = a x + b F along the probability-flow ODE dx/dt = v(x, t):

- Eulerian, move the start: d/dt f_{t->s}(x_t) = a' x + a v + b' F + b dF/dt = 0;
- Lagrangian, move the end: d/ds f_{t->s}(x) = v(f, s).

The third identity, f_{t->s} = f_{u->s} o f_{t->u}, has no rate; losses compare its sides as they
scale them (`psd`, `shortcut`, `ctm`). Each residual is a `Combination` whose gradient is that of
the student's F at (t, s) alone; what else it holds comes from `at.target`, `at.frozen` or a teacher
and has none.

Source: Boffi et al., "Flow Map Matching" (2024), propositions 2.2 to 2.4; Boffi et al., "How to
Build a Consistency Model" (2025), section 2.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.flow_maps import AverageVelocity, FlowMap
from cmsolvers.losses.derivatives.derivative_check import checked_derivative
from cmsolvers.losses.derivatives.inner_modules import around_inner
from cmsolvers.losses.derivatives.total_derivative import Derivative, Method
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.model_views import ModelView
from cmsolvers.losses.evaluation.network_calls import RAW
from cmsolvers.losses.evaluation.states import State


def two_times_of(view: ModelView) -> FlowMap:
    """The flow map of a view whose network has two times.

    Raises:
        ValueError: another kind of model, or a network of one time, which cannot know where to go.
    """
    inner = view.flow_map()
    if inner.second is None:
        made = type(inner).__name__
        raise ValueError(
            f"{view.name} must take two times; its network has one: "
            f'{made}(net, second="end") calls net(x, t, s)'
        )
    return inner


def average_velocity_of(view: ModelView) -> AverageVelocity:
    """The flow map of a view whose network is an average velocity.

    Raises:
        ValueError: another kind of model.
    """
    if not isinstance(view.inner, AverageVelocity):
        raise view.refused("an average velocity, AverageVelocity(net)")
    return view.inner


def raw_derivative(
    at: Evaluation,
    view: ModelView,
    x: State,
    end: Tensor | None,
    tangents: tuple[Any, Any, Any],
    derivative: Method,
    *,
    through: bool = False,
    full_precision: bool = False,
) -> Derivative:
    """F at (x, t, s) and its derivative along tangents (dx, dt, ds), without gradient.

    The module inside of wrappers is called, since forward mode would break the synchronisation of
    their gradients; with the student's random numbers. With `through` gradients follow, and it is
    the wrapper that is called. With `full_precision` this pass is outside of autocast, at a state
    in float32 at least.
    """
    inner = view.form
    called = inner if through else around_inner(inner)

    def raw(state: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if through and view.model is not inner:
            made: object = view.model(state, t, s, output=RAW, **view.extra)
        else:
            made = called.raw(state, t, s, **view.extra)
        return check.model_output(view.name, made, state)

    stop = x.level if end is None else end
    bounds = (None, (stop, at.path.max_level), (0.0, x.level))
    kind = x.x.device.type
    outside = full_precision and torch.is_autocast_enabled(kind)
    state = x.x.to(torch.promote_types(x.x.dtype, torch.float32)) if outside else x.x
    points = (state, x.level, stop)
    with view.passing(), torch.autocast(kind, enabled=False) if outside else nullcontext():
        found, ratio = checked_derivative(
            raw, points, tangents, model=inner, method=derivative, bounds=bounds, through=through
        )
    if ratio is not None:
        at.diagnostics["derivative_ratio"] = ratio
    if found.error is not None:
        at.diagnostics["derivative_error"] = found.error
    if through:
        return replace(
            found, value=view.followed(found.value), derivative=view.followed(found.derivative)
        )
    return found


def eulerian(
    at: Evaluation,
    x: State,
    end: Tensor,
    velocity: Tensor | Combination,
    *,
    derivative: Method = "jvp",
    view: ModelView | None = None,
    scale: float | Tensor = 1.0,
    full_precision: bool = False,
) -> Combination:
    """a' x + a v + b' F + b scale dF/dt: d/dt f_{t->s}(x_t), with gradient through b' F.

    Args:
        at: the evaluation.
        x: the state at t.
        end: s, float64 [B].
        velocity: v(x, t), along which the start moves.
        derivative: "jvp" or "finite_difference".
        view: whose F is differentiated; None is `at.frozen`.
        scale: of the part with dF/dt, for a warm-up, a number or [B].
        full_precision: whether the derivative's pass runs outside of autocast.
    """
    inner = at.student.flow_map()
    along = velocity.tensor(x.x.dtype) if isinstance(velocity, Combination) else velocity
    view = at.frozen if view is None else view
    tangents = (along, 1.0, 0.0)
    found = raw_derivative(at, view, x, end, tangents, derivative, full_precision=full_precision)
    a, b = inner.skip_out(x.level, end)
    a_rate, b_rate = inner.start_rates(x.level, end)
    made = at.student.raw(x, end)
    moving: Combination = of(x.x) * a_rate + of(along) * a + of(made) * b_rate
    moving += of(found.derivative) * (b * scale)
    return moving


def end_rate(
    at: Evaluation, x: State, end: Tensor, *, derivative: Method = "jvp", through: bool = False
) -> tuple[Combination, Combination]:
    """(d/ds f_{t->s}(x), f_{t->s}(x)): a_s x + b_s F + b dF/ds, and where the map is.

    On the diagonal s = t the first is the velocity that the map says.

    Args:
        at: the evaluation.
        x: the state at t.
        end: s, float64 [B].
        derivative: "jvp" or "finite_difference".
        through: whether the gradient goes through dF/ds too, or through F alone.
    """
    inner = at.student.flow_map()
    a, b = inner.skip_out(x.level, end)
    a_rate, b_rate = inner.end_rates(x.level, end)
    view = at.student if through else at.frozen
    found = raw_derivative(at, view, x, end, (None, 0.0, 1.0), derivative, through=through)
    made = found.value if through else at.student.raw(x, end)
    moving = Combination([(x.x, a_rate), (made, b_rate), (found.derivative, b)])
    return moving, Combination([(x.x, a), (made, b)])


def lagrangian(
    at: Evaluation,
    x: State,
    end: Tensor,
    velocity: ModelView,
    *,
    derivative: Method = "jvp",
    through: bool = False,
) -> Combination:
    """d/ds f_{t->s}(x) - v(f^-, s), with gradient through the derivative in s.

    Args:
        at: the evaluation.
        x: the state at t.
        end: s, float64 [B].
        velocity: the teacher, or a map whose diagonal gives v; no gradient goes through it.
        derivative: "jvp" or "finite_difference".
        through: whether the gradient goes through dF/ds too, or through b_s F alone.
    """
    moving, reached = end_rate(at, x, end, derivative=derivative, through=through)
    state = x.at(reached.detach(), end)
    return moving - velocity.velocity(state).detach()
