"""Flow maps that teach themselves: Lagrangian and semigroup self-distillation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.derivatives.total_derivative import Method
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.model_views import ModelView
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.identities import end_rate
from cmsolvers.losses.formulas.learned_weight import learned
from cmsolvers.losses.formulas.weights import Norm, mean_square
from cmsolvers.losses.times.trajectory_times import UniformTimes

STOPPED = ("target", "none")


@loss(
    identity="lagrangian",
    source="Boffi et al., 'How to Build a Consistency Model: Learning Flow Maps via "
    "Self-Distillation' (2025), Lagrangian self-distillation",
    times=UniformTimes(),
    coordinates="flow",
    model="flow map",
)
def lsd(
    at: Evaluation,
    *,
    stop_gradient: str = "target",
    distance: Norm = mean_square,
    weight: Callable[[Tensor, Tensor], Tensor] | None = None,
    derivative: Method = "jvp",
) -> Tensor:
    """Lagrangian self-distillation: d/ds f_{t->s}(x_t) = v(f, s), v the map's own diagonal.

    Samples with s = t match v to the velocity of the pair, the others the end of the map to v. The
    gradient goes through the derivative in s.

    Args:
        stop_gradient: "target": none through v(f, s); "none": through all of it.
        distance: of the residual per sample.
        weight: `w(t, s) -> [B]`, a small network that is trained along: e^-w distance + w; None is
            the distance itself.
        derivative: "jvp" or "finite_difference".
    """
    stopped = check.choice("stop_gradient", stop_gradient, STOPPED) == "target"
    (x,) = at.states(at.t, velocity=True)
    moving, reached = end_rate(at, x, at.s, derivative=derivative, through=True)
    state = x.at(reached.detach() if stopped else reached, at.s)
    same = (at.s == at.t).double()
    own = other_side(at, stopped).velocity(state)
    residual = moving - own * (1.0 - same) - of(x.velocity) * same
    return learned(at, distance(residual), weight, at.t, at.s)


@loss(
    identity="semigroup",
    source="Boffi et al., 'How to Build a Consistency Model: Learning Flow Maps via "
    "Self-Distillation' (2025), progressive self-distillation",
    times=UniformTimes(),
    coordinates="flow",
    model="flow map",
)
def psd(
    at: Evaluation,
    *,
    between: str = "uniform",
    stop_gradient: str = "target",
    distance: Norm = mean_square,
    weight: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Progressive self-distillation: f_{t->s} = f_{u->s} o f_{t->u}, divided by s - t.

    For an average velocity that is |u_{t->s} - ((1 - c) u_{t->u} + c u_{u->s})| with c = (s - u) /
    (s - t). Samples with s = t match the map's velocity to that of the pair.

    Args:
        between: "uniform": u anywhere between t and s; "midpoint": in the middle.
        stop_gradient: "target": none through the two steps; "none": through all three.
        distance: of the residual per sample.
        weight: `w(t, s) -> [B]`, a small network that is trained along: e^-w distance + w; None is
            the distance itself.
    """
    stopped = check.choice("stop_gradient", stop_gradient, STOPPED) == "target"
    midpoint = check.choice("between", between, ("uniform", "midpoint")) == "midpoint"
    (x,) = at.states(at.t, velocity=True)
    same = at.s == at.t
    left = _per_time(at, x, same)
    view = other_side(at, stopped)
    share: Tensor | float = 0.5 if midpoint else at.uniform()[:, 0]
    middle = at.t + share * (at.s - at.t)
    first = view(x, middle)
    second = x.at(first, middle)
    a, b = view.flow_map().skip_out(middle, at.s)
    twice = first * a + of(view.raw(second, at.s)) * b
    right = twice * torch.where(same, 0.0, 1.0 / _gap(at, same)) + of(x.velocity) * same.double()
    return learned(at, distance(left - right), weight, at.t, at.s)


def _gap(at: Evaluation, same: Tensor) -> Tensor:
    """s - t, 1 where that is 0."""
    return torch.where(same, 1.0, at.s - at.t)


def _per_time(at: Evaluation, x: State, same: Tensor) -> Combination:
    """f_{t->s}(x) / (s - t), and the map's velocity where s = t."""
    inner, gap = at.student.flow_map(), _gap(at, same)
    pairs = zip(inner.end_rates(at.t, at.t), inner.skip_out(at.t, at.s), strict=True)
    a, b = (torch.where(same, rate, value / gap) for rate, value in pairs)
    return Combination([(x.x, a), (at.student.raw(x, at.s), b)])


def other_side(at: Evaluation, stopped: bool) -> ModelView:
    """Who answers on the other side: the target, or the student once more, with gradient."""
    return at.target if stopped else at.student.again()
