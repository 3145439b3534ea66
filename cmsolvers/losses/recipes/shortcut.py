"""Shortcut models: a step of size d is two steps of size d / 2."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.mistakes.glances import can_be_read
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.identities import average_velocity_of
from cmsolvers.losses.formulas.weights import Norm, mean_square
from cmsolvers.losses.times.flow_times import DyadicPairs


@loss(
    identity="semigroup",
    source="Frans, Hafner, Levine & Abbeel, 'One Step Diffusion via Shortcut Models' (2024), "
    "eq. 5, algorithm 1 and published code",
    times=DyadicPairs(),
    coordinates="flow",
    model="flow map",
)
def shortcut(
    at: Evaluation,
    *,
    share: float = 0.125,
    clip: float | None = 4.0,
    floor: float = 1e-5,
    distance: Norm = mean_square,
) -> Tensor:
    """Shortcut models: two half steps of the target for the first samples, flow matching elsewhere.

    The first samples of the batch, a `share` of it (rounded down), learn the average velocity of a
    step from t to s: the mean of the target's two over the halves, clipped, as is the state between
    them. All others learn z - x_0 at s = t. With `AverageVelocity(net, second=step_index(128))` the
    network gets log2(1 / (t - s)), and at s = t the index of the smallest step, as published;
    `second="length"` is the step itself. The target is an average of the model in the paper.

    Args:
        share: of the batch with two steps, in [0, 1]: that of `times`, or of `levels`, whose first
            samples alone have s < t. Another one is an error (on a CPU; a device is not asked).
        clip: bound of the elements of the state between and of the mean velocity; None is none.
        floor: of the noise, x_t = (1 - t) x_0 + (t + floor (1 - t)) z: the paper's path keeps a
            little of it.
        distance: of the velocity's residual per sample.
    """
    average_velocity_of(at.student)
    check.within("share", share, 0.0, 1.0)
    count = int(len(at.x0) * share)
    first = torch.arange(len(at.t), device=at.t.device) < count
    _require_share(at, first, count, share)
    at.s = torch.where(first, at.s, at.t)
    x, v = _noised(at, check.non_negative("floor", floor))
    if count > 0:
        part = State(x.x[:count], at.t[:count])
        v = torch.cat([_two_steps(at, part, at.s[:count], clip).to(v.dtype), v[count:]])
    return distance(of(at.student.raw(x, at.s)) - v)


def _require_share(at: Evaluation, first: Tensor, count: int, share: float) -> None:
    """ValueError where other samples than the first ones have a step."""
    if at.t.device.type != "cpu" or not can_be_read(at.t):
        return
    steps = at.s < at.t
    if not torch.equal(steps, first):
        raise ValueError(
            f"share must be that of times, such as DyadicPairs(share=...), or of levels: the part "
            f"of the batch with s < t, its first samples; got {share:g}, {count} of {len(first)} "
            f"samples, where {int(steps.sum())} have s < t"
        )


def _noised(at: Evaluation, floor: float) -> tuple[State, Tensor]:
    """The state at t of a path that keeps some noise at t = 0, and the pair's velocity."""
    (x,) = at.states(at.t, velocity=True)
    if floor == 0.0:
        return x, x.velocity
    z = at.noise()
    noisier = Combination([(x.x, 1.0), (z, floor * (1.0 - at.t))])
    slower = Combination([(x.velocity, 1.0), (z, -floor)]).tensor(x.x.dtype)
    return x.at(noisier, at.t), slower


def _two_steps(at: Evaluation, x: State, end: Tensor, clip: float | None) -> Tensor:
    """The mean velocity of the target's two half steps, for the first samples of the batch."""
    view = at.target.first(len(x.level), len(at.x0))
    between = (x.level + end) / 2.0
    first = view.raw(x, between)
    middle = _clipped(of(x.x) + of(first) * (between - x.level), clip).to(x.x.dtype)
    second = view.raw(State(middle, between), end)
    return _clipped((of(first) + second) * 0.5, clip)


def _clipped(value: Combination, clip: float | None) -> Tensor:
    found = value.tensor()
    return found if clip is None else found.clamp(-clip, clip)
