"""Align Your Flow: flow maps of two times distilled in continuous time."""

from __future__ import annotations

from torch import Tensor

from cmsolvers.losses.derivatives.total_derivative import Method
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.formulas.identities import two_times_of
from cmsolvers.losses.formulas.motions import end_motion, pull, start_motion
from cmsolvers.losses.formulas.tangents import TangentRule, normalised, unchanged
from cmsolvers.losses.formulas.weights import Norm, PairWeight, mean_square, one
from cmsolvers.losses.times.continuous_times import Intervals

AYF = "Sabour et al., 'Align Your Flow: Scaling Continuous-Time Flow Map Distillation' (2025)"


@loss(
    identity="eulerian",
    source=f"{AYF}, section 3.1 and algorithm 1",
    times=Intervals(),
    coordinates="flow",
    model="flow map",
    teacher="required",
)
def ayf_emd(
    at: Evaluation,
    *,
    warmup: int | None = 10_000,
    limit: float = 0.99,
    tangent: TangentRule = normalised,
    weight: PairWeight = one,
    distance: Norm = mean_square,
    derivative: Method = "jvp",
) -> Tensor:
    """Eulerian map distillation: w sign(t - s) f^T sg(df^-_{t->s}/dt) along the teacher's ODE.

    As |F - sg(F - g)|^2 with g = (F^- - v) + r (t - s) dF^-/dt, normalised, for f = x + (s - t) F:
    the sign and the factor |t - s| of dF in df are in w. At s = t it is flow matching of the
    teacher's velocity, at s = 0 consistency distillation. Any flow map of two times will do; r
    then holds back all but the part that is linear in v and F.

    Args:
        warmup: steps in which r rises to `limit`; None: r = `limit`.
        limit: the largest r; below 1 the loss keeps a share of the teacher's velocity.
        tangent: `Normalised(norm, c)`, `Clamped(limit)`, `unchanged`, or any rule (at, g) -> g.
        weight: w(t, s).
        distance: of F - sg(F - g), [B].
        derivative: "jvp" or "finite_difference".
    """
    (x,) = at.states(at.t)
    two_times_of(at.student)
    motion = start_motion(at, x, at.s, at.teacher_velocity(x), derivative=derivative)
    r = at.progress
    r = r.clamp(max=limit) if isinstance(r, Tensor) else min(r, limit)
    g = motion.straight + motion.turning * r
    return distance(pull(motion, tangent(at, g))) * weight(at.t, at.s)


@loss(
    identity="lagrangian",
    source=f"{AYF}, section 3.1",
    times=Intervals(),
    coordinates="flow",
    model="flow map",
    teacher="required",
)
def ayf_lmd(
    at: Evaluation,
    *,
    tangent: TangentRule = unchanged,
    weight: PairWeight = one,
    distance: Norm = mean_square,
    derivative: Method = "jvp",
) -> Tensor:
    """Lagrangian map distillation: w sign(s - t) f^T sg(df^-_{t->s}/ds - v(f^-, s)), v the teacher.

    As |F - sg(F - g)|^2 with g = (F^- - v(f^-, s)) + (s - t) dF^-/ds for f = x + (s - t) F: the
    sign and the factor |t - s| of dF in df are in w. A teacher that is a denoiser has no velocity
    at s = 0.

    Args:
        tangent: `unchanged`, `Normalised(norm, c)`, `Clamped(limit)`, or any rule (at, g) -> g.
        weight: w(t, s).
        distance: of F - sg(F - g), [B].
        derivative: "jvp" or "finite_difference".
    """
    two_times_of(at.student)
    (x,) = at.states(at.t)
    motion = end_motion(at, x, at.s, derivative=derivative)
    g = motion.straight + motion.turning
    return distance(pull(motion, tangent(at, g))) * weight(at.t, at.s)
