"""Consistency distillation and consistency training.

Both ask that f gives the same answer at two neighbouring points of one ODE trajectory:
the student at the larger level sigma, the target, which gets no gradient, at the smaller
sigma_next. They differ in how the second point is found: distillation takes one step of the
probability-flow ODE with a teacher; training uses the same clean sample and the *same* noise at
both levels, which is a one-sample estimate of the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise, ops
from cmsolvers.losses import terms
from cmsolvers.losses.boundary import look_at_boundary
from cmsolvers.losses.distances import Distance, get_distance
from cmsolvers.losses.randomness import SameRandomness, same_statistics
from cmsolvers.losses.repeated_noise import draw_of
from cmsolvers.processes.coordinates import in_karras, require_karras

Model: TypeAlias = Callable[..., Tensor]
PairWeight: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def ict_weight(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """1 / (sigma - sigma_next), both of shape [B]: the weight of improved consistency training.

    Source: Song & Dhariwal, "Improved Techniques for Training Consistency Models" (2023), section
        3.1.
    """
    return 1.0 / (sigma - sigma_next)


def consistency_distillation(
    student: Model,
    target: Model | None,
    teacher: Model,
    x0: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    *,
    distance: str | Distance = "l2",
    weight: PairWeight | None = None,
    solver: str | Callable[..., Tensor] = "heun",
    seed: noise.SeedLike = None,
    draw: int | None = None,
    offset: int = 0,
    extra_args: Mapping[str, object] | None = None,
    teacher_args: Mapping[str, object] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """E w d(f(x, sigma), f^-(x', sigma_next)), where x' is one teacher step from x.

    x = x0 + sigma z, and the teacher moves it to x' at sigma_next along its probability-flow ODE.

    Args:
        student: f(x, sigma, **extra_args), gets the gradient; usually a `ConsistencyFunction`.
        target: f^-, usually around an EMA of the student's network; None is the student itself
            without gradient.
        teacher: denoiser D(x, sigma, **teacher_args) that makes the step, in any coordinates.
        x0: clean data [B, ...].
        sigma: the larger levels, a number or a tensor [] or [B].
        sigma_next: the smaller levels, at least 0. Where it is 0 the target is x0 itself (as in
            easy consistency tuning), and nothing that the target returns is used.
        distance: "l1", "l2", "pseudo_huber", "lpips", or a callable (a, b) -> [B].
        weight: w(sigma, sigma_next) -> [B], both [B] in float64; None is 1 (lambda = 1).
        solver: "heun" (order 2), "euler", or a callable (teacher, x, sigma, sigma_next) -> x'.
        seed: seed or `noise.Key` of the noise.
        draw: which draw of the training-noise stream, usually the training step. Without it (None)
            the draw is 0, and the same seed adds the same noise to every batch.
        offset: id of the first sample, for shards.
        extra_args: passed to student and target.
        teacher_args: passed to the teacher; None is `extra_args`.
        reduction: "mean", "sum" or "none" (a tensor [B]).

    Returns:
        The loss, in float32 at least.

    Warns:
        UserWarning: once, where no draw is given and a seed that is a number meets a second batch;
            once, where the student is far from the identity at sigma = 0.002. A student that is not
            of a type of the library is evaluated once more for that, at its first call.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: wrong shapes, sigma not above sigma_next, unknown names.

    Source: Song et al., "Consistency Models" (2023), algorithm 2.
    """
    pair = _prepare(student, target, x0, sigma, sigma_next, extra_args, reduction)
    teacher = in_karras(check.function("teacher", teacher))
    check.optional_function("weight", weight)
    own = None if teacher_args is None else check.options("teacher_args", teacher_args)
    teacher_extra = pair.extra if own is None else own
    step = _teacher_step(solver)
    draw = draw_of("consistency_distillation", x0, seed, draw, offset)
    x = terms.noised(x0, pair.high, seed, draw, offset)
    dtype = torch.promote_types(x.dtype, torch.float32)

    def denoise(state: Tensor, level: Tensor) -> Tensor:
        denoised = teacher(state, level.to(dtype), **teacher_extra)
        return check.model_output("teacher", denoised, state)

    with torch.no_grad():
        x_next = check.model_output("solver", step(denoise, x, pair.high, pair.end), x)
    apart = _distances(student, target, x, x_next, pair, get_distance(distance))
    return terms.weigh(apart, None if weight is None else weight(pair.high, pair.low), reduction)


def consistency_training(
    student: Model,
    target: Model | None,
    x0: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    *,
    distance: str | Distance = "pseudo_huber",
    weight: PairWeight | None = ict_weight,
    seed: noise.SeedLike = None,
    draw: int | None = None,
    offset: int = 0,
    extra_args: Mapping[str, object] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """E w d(f(x0 + sigma z, sigma), f^-(x0 + sigma_next z, sigma_next)), the same z in both.

    The defaults are those of improved consistency training: no EMA target (pass `target=None`), the
    pseudo-Huber distance, weights 1 / (sigma - sigma_next). `distance="l2", weight=None` and an EMA
    target give the original.

    Args:
        student: f(x, sigma, **extra_args), gets the gradient; usually a `ConsistencyFunction`.
        target: f^-, usually around an EMA of the student's network; None is the student itself
            without gradient.
        x0: clean data [B, ...].
        sigma: the larger levels, a number or a tensor [] or [B].
        sigma_next: the smaller levels, at least 0. Where it is 0 the target is x0 itself (as in
            easy consistency tuning), and nothing that the target returns is used.
        distance: "l1", "l2", "pseudo_huber", "lpips", or a callable (a, b) -> [B].
        weight: w(sigma, sigma_next) -> [B], both [B] in float64; None is 1.
        seed: seed or `noise.Key` of the noise.
        draw: which draw of the training-noise stream, usually the training step. Without it (None)
            the draw is 0, and the same seed adds the same noise to every batch.
        offset: id of the first sample, for shards.
        extra_args: passed to student and target.
        reduction: "mean", "sum" or "none" (a tensor [B]).

    Returns:
        The loss, in float32 at least.

    Warns:
        UserWarning: once, where no draw is given and a seed that is a number meets a second batch;
            once, where the student is far from the identity at sigma = 0.002. A student that is not
            of a type of the library is evaluated once more for that, at its first call.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: wrong shapes, sigma not above sigma_next, unknown names.

    Source: Song et al., "Consistency Models" (2023), algorithm 3; Song & Dhariwal (2023), section
        3.
    """
    pair = _prepare(student, target, x0, sigma, sigma_next, extra_args, reduction)
    check.optional_function("weight", weight)
    draw = draw_of("consistency_training", x0, seed, draw, offset)
    x, x_next = ops.add_noise(
        x0,
        pair.high,
        sigma_next=pair.end,
        seed=seed,
        stream=noise.TRAINING,
        draw=draw,
        offset=offset,
    )
    apart = _distances(student, target, x, x_next, pair, get_distance(distance))
    return terms.weigh(apart, None if weight is None else weight(pair.high, pair.low), reduction)


class _Pair(NamedTuple):
    """Checked arguments of a loss.

    Attributes:
        x0: clean data.
        high: sigma, float64 [B].
        low: sigma_next, likewise.
        at_zero: where sigma_next is 0, so that x0 takes the place of what the target returns: True
            for all samples, None for none, or bool [B].
        end: sigma_next, and sigma where that is 0: where teacher and target are called.
        extra: arguments of student and target.
    """

    x0: Tensor
    high: Tensor
    low: Tensor
    at_zero: Tensor | bool | None
    end: Tensor
    extra: dict[str, object]


def _prepare(
    student: Model,
    target: Model | None,
    x0: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    extra_args: Mapping[str, object] | None,
    reduction: str,
) -> _Pair:
    require_karras("student", check.function("student", student))
    require_karras("target", check.optional_function("target", target))
    terms.reduction_name(reduction)
    high, low = terms.pair(sigma, sigma_next, check.state("x0", x0))
    extra = check.options("extra_args", extra_args)
    if not isinstance(sigma_next, Tensor):
        clean = sigma_next == 0
        return _Pair(x0, high, low, clean or None, high if clean else low, extra)
    at_zero = low == 0
    readable = low.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not bool(at_zero.any()):
        return _Pair(x0, high, low, None, low, extra)
    return _Pair(x0, high, low, at_zero, torch.where(at_zero, high, low), extra)


def _distances(
    student: Model,
    target: Model | None,
    x: Tensor,
    x_next: Tensor,
    pair: _Pair,
    distance: Distance,
) -> Tensor:
    """d(f(x, sigma), f^-(x', sigma_next)), [B]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    same = SameRandomness(x.device)
    with same.record():
        value = check.model_output("student", student(x, pair.high.to(dtype), **pair.extra), x)
    look_at_boundary(student, pair.x0, pair.extra, same)
    model = student if target is None else target
    with torch.no_grad(), same.replay(), same_statistics(model):
        aim = pair.x0
        if pair.at_zero is not True:
            aim = check.model_output("target", model(x_next, pair.end.to(dtype), **pair.extra), x)
        if isinstance(pair.at_zero, Tensor):
            aim = torch.where(pair.at_zero.reshape(-1, *[1] * (x.ndim - 1)), pair.x0, aim)
    return terms.distances("distance", distance(value, aim), x)


def _teacher_step(solver: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    if solver == "heun":
        return _heun
    if solver == "euler":
        return _euler
    if isinstance(solver, str):
        raise ValueError(f'solver must be "heun", "euler" or a callable; got {solver!r}')
    return check.function("solver", solver)


def _euler(teacher: Model, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return ops.pf_ode_step(x, teacher(x, sigma), sigma, sigma_next)


def _heun(teacher: Model, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    denoised = teacher(x, sigma)
    predicted = ops.heun_step(x, denoised, sigma, sigma_next)
    return ops.heun_step(x, denoised, sigma, sigma_next, teacher(predicted, sigma_next))
