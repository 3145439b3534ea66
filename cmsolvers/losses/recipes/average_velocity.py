"""Average velocities: losses of the MeanFlow family whose derivative is exact."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cmsolvers.denoisers.velocity_heads import VelocityHeads
from cmsolvers.losses.derivatives.total_derivative import Method
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.formulas.identities import (
    average_velocity_of,
    eulerian,
    raw_derivative,
    two_times_of,
)
from cmsolvers.losses.formulas.velocity_guidance import (
    Guidance,
    GuidanceInputs,
    instantaneous,
    learned_velocity,
)
from cmsolvers.losses.formulas.weights import Norm, adaptive, square_sum
from cmsolvers.losses.times.basic_times import LogitNormalPairs
from cmsolvers.losses.times.flow_times import LogitNormalEnds

MEANFLOW: dict[str, dict[str, Any]] = {
    "imagenet": {"times": LogitNormalPairs(-0.4, 1.0, equal=0.75), "p": 1.0, "eps": 0.01},
    "cifar": {"times": LogitNormalEnds(-0.6, 1.6, 0.25, -4.0, 1.6), "p": 0.75, "eps": 1e-3},
}
"""The two published settings of `meanflow`, to use as `meanflow(..., **MEANFLOW["cifar"])`.

75 % of ImageNet's pairs have s = t; 75 % of CIFAR's do not (before an s above t is cut to t).
"""


@loss(
    identity="eulerian",
    source="Geng et al., 'Mean Flows for One-step Generative Modeling' (2025), algorithm 1, eq. 22",
    times=LogitNormalPairs(),
    coordinates="flow",
    model="flow map",
)
def meanflow(
    at: Evaluation,
    *,
    p: float = 1.0,
    eps: float = 0.01,
    square: Norm = square_sum,
    guidance: Guidance | None = None,
    derivative: Method = "jvp",
    full_precision: bool = True,
) -> Tensor:
    """MeanFlow: |u - sg(v - (t - s) du/dt)|^2, du/dt along the velocity of the pair, v = z - x_0.

    The target is linear in v, so with p = 0 a one-sample velocity is as good as its mean: the exact
    average velocity is stationary. With p > 0 the weight depends on the same v, and the loss is
    stationary where v given x is symmetric about its mean (Gaussian data) but not where it is
    skewed: for two points with weights 0.1 and 0.9, at t = s = 0.7, its solution is off by 0.17
    (p = 1) or 0.19 (p = 0.75) standard deviations of v. `MEANFLOW` holds the published settings.

    With p = 1 each sample's loss is square / (square + eps), mostly near 1 from the first step to
    the last: its value tells little of the training. To watch one, evaluate with p = 0.

    Args:
        p: power of the adaptive weight, square / sg(square + eps)^p.
        eps: added to the squared norm before that power.
        square: `square_sum`, over elements, as in the authors' code, or `mean_square`, as in other
            codes with eps 0.01 or 1e-3: eps means something else then.
        guidance: a `Guidance` in the velocity, with `label_dropout`; None is none.
        derivative: "jvp" or "finite_difference".
        full_precision: whether the derivative's pass runs outside of autocast.
    """
    two_times_of(at.student)
    (x,) = at.states(at.t, velocity=True)
    v = learned_velocity(at, x, guidance)
    residual = eulerian(at, x, at.s, v, derivative=derivative, full_precision=full_precision)
    return adaptive(square(residual), p, eps)


@loss(
    identity="eulerian",
    source="Geng et al., 'Improved Mean Flows: On the Challenges of Fastforward Generative Models' "
    "(2025), algorithm 1 and published code",
    times=LogitNormalPairs(-0.4, 1.0, equal=0.5),
    coordinates="flow",
    model="flow map",
)
def imf(
    at: Evaluation,
    *,
    p: float = 1.0,
    eps: float = 0.01,
    square: Norm = square_sum,
    guidance: GuidanceInputs | None = None,
    derivative: Method = "jvp",
    full_precision: bool = True,
) -> Tensor:
    """Improved MeanFlow: |V - v|^2 with V = u + (t - s) sg(du/dt), du/dt along the *predicted* v.

    V no longer depends on the pair but through its target, so this is a regression on v = z - x_0.
    The predicted velocity stands at s = t with the sample's label. A `VelocityHeads(net)` predicts
    it with a second head, which is trained at (t, s) by a second term of the same form; of an
    `AverageVelocity(net)` it is u at s = t, and there is no second term.

    Args:
        p: power of the adaptive weight of each term, square / sg(square + eps)^p.
        eps: added to the squared norm before that power.
        square: `square_sum`, over elements, or `mean_square`.
        guidance: a `GuidanceInputs`, whose scale and interval the network gets as keyword
            arguments, with `label_dropout`; None is none.
        derivative: "jvp" or "finite_difference".
        full_precision: whether the derivative's pass runs outside of autocast.
    """
    inner = average_velocity_of(at.student)
    (x,) = at.states(at.t, velocity=True)
    if guidance is None:
        v, tangent = of(x.velocity), instantaneous(at.frozen, x)
    else:
        v, tangent = guidance.velocities(at, x, at.s, x.velocity)
    along = tangent.tensor(x.x.dtype)
    found = raw_derivative(
        at, at.frozen, x, at.s, (along, 1.0, 0.0), derivative, full_precision=full_precision
    )
    correction = Combination([(found.derivative, at.t - at.s)])
    if not isinstance(inner, VelocityHeads):
        return adaptive(square(at.student.raw(x, at.s) + correction - v), p, eps)
    u, head = at.student.heads(x, at.s)
    average, instant = square(correction + u - v), square(of(head) - v)
    at.diagnostics["average"], at.diagnostics["instant"] = average.mean(), instant.mean()
    return adaptive(average, p, eps) + adaptive(instant, p, eps)
