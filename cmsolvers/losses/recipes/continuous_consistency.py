"""Consistency in continuous time: f does not change along an ODE trajectory, df/dt = 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cmsolvers.losses.derivatives.total_derivative import Method
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.learned_weight import learned
from cmsolvers.losses.formulas.motions import (
    Motion,
    StartMethod,
    map_rate,
    pull,
    ratio_rate,
    start_motion,
)
from cmsolvers.losses.formulas.tangents import TangentRule, normalised, power_law_rate
from cmsolvers.losses.formulas.weights import LevelWeight, Norm, mean_square, square_sum
from cmsolvers.losses.times.basic_times import LogNormal
from cmsolvers.losses.times.continuous_times import PowerLaw
from cmsolvers.processes.flows import TrigFlow


@loss(
    identity="eulerian",
    source="Song et al., 'Consistency Models' (2023), theorem 6; Lu & Song, 'Simplifying, "
    "Stabilizing and Scaling Continuous-Time Consistency Models' (2025), eq. 3",
    times=PowerLaw(),
    coordinates="karras",
    model="consistency",
)
def continuous_ct(
    at: Evaluation, *, weight: LevelWeight | None = None, derivative: Method = "jvp"
) -> Tensor:
    """Continuous consistency training: w(sigma) f^T sg(df^-/dsigma), along the pair's velocity.

    The sum over elements is reported as it is: it may be negative, and is 0 for the exact map on
    average. Its gradient is what consistency training with the squared distance has for ever finer
    levels, over twice their distance. sigma is the ratio of noise to data, whatever the model's
    coordinates are.

    Args:
        weight: w(sigma), float64 [B]; None is `power_law_rate()`, dsigma/du of the default levels.
        derivative: "jvp" or "finite_difference".
    """
    (x,) = at.states(at.t, velocity=True)
    return _inner_product(at, x, x.velocity, weight, derivative)


@loss(
    identity="eulerian",
    source="Song et al., 'Consistency Models' (2023), theorem 5; Lu & Song, 'Simplifying, "
    "Stabilizing and Scaling Continuous-Time Consistency Models' (2025), eq. 3",
    times=PowerLaw(),
    coordinates="karras",
    model="consistency",
    teacher="required",
)
def continuous_cd(
    at: Evaluation, *, weight: LevelWeight | None = None, derivative: Method = "jvp"
) -> Tensor:
    """Continuous consistency distillation: w(sigma) f^T sg(df^-/dsigma), along the teacher's ODE.

    The sum over elements is reported as it is, see `continuous_ct`.

    Args:
        weight: w(sigma), float64 [B]; None is `power_law_rate()`, dsigma/du of the default levels.
        derivative: "jvp" or "finite_difference".
    """
    (x,) = at.states(at.t)
    return _inner_product(at, x, at.teacher_velocity(x), weight, derivative)


def _inner_product(
    at: Evaluation, x: State, velocity: Tensor, weight: LevelWeight | None, derivative: Method
) -> Tensor:
    made, rate = map_rate(at, x, velocity, derivative=derivative)
    w = (power_law_rate() if weight is None else weight)(at.path.ratio(at.t))
    constant = (rate * ratio_rate(at, at.t)).tensor()
    if at.left_out is not None:
        constant = at.left_out.without_bad(constant)
    return made.dot(constant) * w


SCM = "Lu & Song, 'Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models' (2025)"


@loss(
    identity="eulerian",
    source=f"{SCM}, algorithm 1 (sCT)",
    times=LogNormal(-1.0, 1.4),
    coordinates="trigflow",
    model="consistency",
)
def sct(
    at: Evaluation,
    *,
    warmup: int | None = 10_000,
    tangent: TangentRule = normalised,
    weight: Callable[..., Tensor] | None = None,
    prior: LevelWeight | None = None,
    distance: Norm = mean_square,
    derivative: StartMethod = "jvp",
    gap: float = 1e-4,
) -> Tensor:
    """sCM training: e^-w |F - sg(F + g)|^2 / D + w, g the tangent cos t df^-/dt, normalised.

    In full, -g = cos^2 t (sd F^- - v) + r cos t sin t (x + sd dF^-/dt) with v = cos t z - sin t x_0
    of the pair and r rising from 0 to 1. The model is a `TrigFlowMap(net)`; levels are angles.

    With a normalised tangent the exact consistency function is not a stationary point: the velocity
    of one pair is right on average, and g / (|g| + c) is not linear in it. `tangent=unchanged`
    makes it one, and `scd` has no such error.

    Args:
        warmup: steps in which r rises; None: r = 1.
        tangent: `Normalised(norm, c)`, `Clamped(limit)`, `unchanged`, or any rule (at, g) -> g.
        weight: w(t), a small network that is trained along; None is 0.
        prior: a further weight of the squared norm, such as `inverse_tangent(sigma_data)`; None is
            1.
        distance: of F - sg(F + g), [B]; `mean_square` has the factor 1 / D of the paper. With the
            norm "rms" the tangent's square is D times that with "l2", so that w is balanced against
            a value D times as large.
        derivative: "jvp", "finite_difference", or "discrete": a difference of F at two angles.
        gap: between the two angles of "discrete".
    """
    (x,) = at.states(at.t, velocity=True)
    motion = _on_circle(at, x, x.velocity, derivative, gap)
    return _weighted(at, motion, _scm_tangent(at, motion), tangent, weight, prior, distance)


@loss(
    identity="eulerian",
    source=f"{SCM}, algorithm 1 (sCD)",
    times=LogNormal(-1.0, 1.4),
    coordinates="trigflow",
    model="consistency",
    teacher="required",
)
def scd(
    at: Evaluation,
    *,
    warmup: int | None = 10_000,
    tangent: TangentRule = normalised,
    weight: Callable[..., Tensor] | None = None,
    prior: LevelWeight | None = None,
    distance: Norm = mean_square,
    derivative: StartMethod = "jvp",
    gap: float = 1e-4,
) -> Tensor:
    """sCM distillation: e^-w |F - sg(F + g)|^2 / D + w, g as in `sct` along the teacher's ODE.

    -g = cos^2 t (sd F^- - v) + r cos t sin t (x + sd dF^-/dt), normalised, with the teacher's v and
    r rising from 0 to 1. The model is a `TrigFlowMap(net)`; levels are angles.

    Args:
        warmup: steps in which r rises; None: r = 1.
        tangent: `Normalised(norm, c)`, `Clamped(limit)`, `unchanged`, or any rule (at, g) -> g.
        weight: w(t), a small network that is trained along; None is 0.
        prior: a further weight of the squared norm, such as `inverse_tangent(sigma_data)`; None is
            1.
        distance: of F - sg(F + g), [B]; `mean_square` has the factor 1 / D of the paper.
        derivative: "jvp", "finite_difference", or "discrete": a difference of F at two angles.
        gap: between the two angles of "discrete".
    """
    (x,) = at.states(at.t)
    motion = _on_circle(at, x, at.teacher_velocity(x), derivative, gap)
    return _weighted(at, motion, _scm_tangent(at, motion), tangent, weight, prior, distance)


@loss(
    identity="eulerian",
    source="Zheng et al., 'Large Scale Diffusion Distillation via Score-Regularized "
    "Continuous-Time Consistency' (2025), the consistency part, and its published code",
    times=LogNormal(-0.8, 1.6),
    coordinates="trigflow",
    model="consistency",
    teacher="required",
)
def rcm(
    at: Evaluation,
    *,
    warmup: int | None = 1_000,
    tangent: TangentRule = normalised,
    distance: Norm = square_sum,
    derivative: StartMethod = "jvp",
    gap: float = 1e-4,
) -> Tensor:
    """rCM's consistency part: |F - sg(F + g)|^2, a sum over elements, along the teacher's ODE.

    -g = cos t sqrt(1 - r^2 sin^2 t) (sd F^- - v) + r cos t sin t (x + sd dF^-/dt), normalised: at
    r = 1 it is that of `scd`, before that the velocity counts more at large t. The paper has
    sigma_data = 1, `TrigFlowMap(net, 1.0)`, and 100 times this loss beside one of distribution
    matching.

    Args:
        warmup: steps in which r rises; None: r = 1.
        tangent: `Normalised(nan_rows="zero")` leaves samples out whose tangent is not finite, as
            the published code does; any rule (at, g) -> g.
        distance: of F - sg(F + g), [B].
        derivative: "jvp", "finite_difference", or "discrete": from F at t and at an Euler step of
            `gap` along the circle.
        gap: between the two angles of "discrete".
    """
    (x,) = at.states(at.t)
    motion = _on_circle(at, x, at.teacher_velocity(x), derivative, gap)
    r = at.progress
    flat = torch.sqrt(1.0 - (r * at.t.sin()) ** 2)
    g = motion.straight * flat + motion.turning * (r * at.t.cos())
    return distance(pull(motion, tangent(at, g)))


def _on_circle(
    at: Evaluation, x: State, velocity: Tensor, derivative: StartMethod, gap: float
) -> Motion:
    """How f_{t->0} moves, in TrigFlow coordinates."""
    if not isinstance(at.path.process, TrigFlow):
        raise ValueError(
            f"model must be in TrigFlow coordinates, such as TrigFlowMap(net); got one in {at.path}"
        )
    end = torch.zeros_like(at.t)
    return start_motion(at, x, end, velocity, derivative=derivative, gap=gap)


def _scm_tangent(at: Evaluation, motion: Motion) -> Any:
    """cos t df/dt, the part of dF/dt and of the turning x held back by the warm-up."""
    return (motion.straight + motion.turning * at.progress) * at.t.cos()


def _weighted(
    at: Evaluation,
    motion: Motion,
    g: Any,
    tangent: TangentRule,
    weight: Callable[..., Tensor] | None,
    prior: LevelWeight | None,
    distance: Norm,
) -> Tensor:
    value = distance(pull(motion, tangent(at, g)))
    return learned(at, value if prior is None else value * prior(at.t), weight, at.t)
