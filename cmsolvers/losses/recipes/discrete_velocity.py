"""Average velocities without a derivative: a shorter step of the same trajectory is the target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.derivatives.total_derivative import Method
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.identities import average_velocity_of, eulerian
from cmsolvers.losses.formulas.velocity_guidance import Guidance, learned_velocity
from cmsolvers.losses.formulas.weights import Norm, adaptive, mean_square
from cmsolvers.losses.times.basic_times import LogitNormalPairs

Schedule: TypeAlias = "Callable[[Any], Any]"
"""Of progress = step / total, a float or a tensor [] where the step is one; 1 without a total."""


@dataclass(frozen=True)
class SigmoidSchedule:
    """1 - sigmoid(steepness (p - (start + end) / 2) / (end - start)), cut to 0 and 1 near them.

    Args:
        start: progress at which it begins to fall.
        end: progress at which it has fallen.
        steepness: of the sigmoid.
        cut: distance from 0 and 1 below which the value is 0 or 1.

    Raises:
        ValueError: end is not above start, a number that is not positive.

    Source: Zhang et al., "AlphaFlow: Understanding and Improving MeanFlow Models" (2025), section
        4.2.
    """

    start: float = 0.0
    end: float = 1.0
    steepness: float = 25.0
    cut: float = 5e-3

    def __post_init__(self) -> None:
        check.below("start", self.start, "end", self.end)
        check.positive("steepness", self.steepness)
        check.within("cut", self.cut, 0.0, 0.5)

    def __call__(self, progress: Any) -> Any:
        """The value at a progress, a float or a tensor."""
        place = (progress - (self.start + self.end) / 2.0) / (self.end - self.start)
        if isinstance(place, Tensor):
            value = torch.sigmoid(-self.steepness * place)
            value = torch.where(value < self.cut, 0.0, value)
            return torch.where(value > 1.0 - self.cut, 1.0, value)
        # tanh does not overflow where exp would.
        number = 0.5 * (1.0 - math.tanh(0.5 * self.steepness * place))
        return 0.0 if number < self.cut else 1.0 if number > 1.0 - self.cut else number


@dataclass(frozen=True)
class ExponentialSchedule:
    """first (last / first)^progress.

    Raises:
        ValueError: a number that is not positive.

    Source: Luo et al., "SoFlow: Solution Flow Models for One-Step Generative Modeling" (2025),
        section 3.2.
    """

    first: float = 0.1
    last: float = 0.002

    def __post_init__(self) -> None:
        check.positive("first", self.first)
        check.positive("last", self.last)

    def __call__(self, progress: Any) -> Any:
        """The value at a progress, a float or a tensor."""
        return self.first * (self.last / self.first) ** progress


ALPHA_FLOW: dict[str, dict[str, Any]] = {
    "b2": {"alpha": SigmoidSchedule(0.0, 1.0), "times": LogitNormalPairs(equal=0.5)},
    "xl2": {
        "alpha": SigmoidSchedule(0.5, 5.0 / 6.0),
        "times": LogitNormalPairs(equal=0.5),
        "clip": 4.0,
    },
}
"""Published settings of `alpha_flow` on ImageNet: small models, and large ones with guidance."""

SOFLOW: dict[str, dict[str, Any]] = {
    "imagenet": {
        "times": LogitNormalPairs(equal=0.75),
        "ratio": ExponentialSchedule(0.1, 0.002),
        "p": 1.0,
        "eps": 0.01,
    },
    "cifar": {
        "times": LogitNormalPairs(equal=0.0),
        "ratio": ExponentialSchedule(1.0, 3e-4),
        "p": 0.75,
        "eps": 1e-3,
    },
}
"""The two published settings of `soflow`. That the times have MeanFlow's distribution is
unconfirmed; logit-normal they are."""


@loss(
    identity="eulerian",
    source="Zhang et al., 'AlphaFlow: Understanding and Improving MeanFlow Models' (2025), eq. 9 "
    "and 10, and published code",
    times=LogitNormalPairs(equal=0.5),
    coordinates="flow",
    model="flow map",
)
def alpha_flow(
    at: Evaluation,
    *,
    total: int | None = None,
    alpha: float | Schedule | None = None,
    p: float = 1.0,
    eps: float = 1e-3,
    square: Norm = mean_square,
    clip: float | None = None,
    guidance: Guidance | None = None,
    derivative: Method = "jvp",
    full_precision: bool = True,
    smallest: float = 5e-3,
) -> Tensor:
    """alpha-Flow: |u - sg(alpha v + (1 - alpha) u(x - h v, t - h, s))|^2, h = alpha (t - s).

    alpha = 1 is flow matching over the whole interval, alpha -> 0 is MeanFlow, whose derivative is
    taken below `smallest`. The residual is alpha times MeanFlow's to first order, so the weight is
    alpha^(2 p - 1) / sg(square + eps)^p: 1 / alpha of the paper for p = 0, alpha of its code for
    p = 1. Samples with s = t are flow matching with weight 1 / sg(square + eps)^p.

    A step that is a tensor computes both forms, since alpha is not read.

    Args:
        total: training steps over which alpha falls; None is its end.
        alpha: a number in [0, 1], or a schedule of step / total; None is `SigmoidSchedule()`.
        p: power of the adaptive weight.
        eps: added to the square before that power.
        square: `mean_square`, over elements, or `square_sum`.
        clip: bound of the elements of the target where it is discrete, 4 in some of the paper's
            runs; None is none.
        guidance: a `Guidance` in the velocity, with `label_dropout`; None is none.
        derivative: "jvp" or "finite_difference", for alpha below `smallest`.
        full_precision: whether the derivative's pass runs outside of autocast.
        smallest: alpha below it is 0.
    """
    average_velocity_of(at.student)
    schedule = SigmoidSchedule() if alpha is None else alpha
    if callable(schedule):
        now = schedule(at.progress)
    else:
        now = check.within("alpha", schedule, 0.0, 1.0)
    at.diagnostics["alpha"] = now
    (x,) = at.states(at.t, velocity=True)
    v = learned_velocity(at, x, guidance)
    if not isinstance(now, Tensor) and now >= smallest:
        return _discrete(at, x, v, now, p, eps, square, clip)
    residual = eulerian(at, x, at.s, v, derivative=derivative, full_precision=full_precision)
    exact = adaptive(square(residual), p, eps)
    if not isinstance(now, Tensor):
        return exact
    found = _discrete(at, x, v, now.double().clamp_min(smallest), p, eps, square, clip)
    return torch.where(now < smallest, exact, found)


def _discrete(
    at: Evaluation,
    x: State,
    v: Tensor,
    alpha: float | Tensor,
    p: float,
    eps: float,
    square: Norm,
    clip: float | None,
) -> Tensor:
    """alpha-Flow with alpha above 0: flow matching where s = t."""
    apart = at.t > at.s
    share = torch.where(apart, alpha, torch.ones_like(at.t))
    between = at.t - share * (at.t - at.s)
    rest = at.frozen.raw(at.moved(x, between, v), at.s)
    aim = of(v) * share + of(rest) * (1.0 - share)
    if clip is not None:
        limit = torch.where(apart, torch.full_like(at.t, clip), math.inf)
        bound = limit.to(v.dtype).reshape(-1, *[1] * (v.ndim - 1))
        made = aim.tensor()
        aim = of(torch.minimum(torch.maximum(made, -bound), bound))
    return adaptive(square(at.student.raw(x, at.s) - aim), p, eps) * share ** (2.0 * p - 1.0)


@loss(
    identity="eulerian",
    source="Luo, Yuan & Liu, 'SoFlow: Solution Flow Models for One-Step Generative Modeling' "
    "(2025), section 3 and published code",
    times=LogitNormalPairs(equal=0.75),
    coordinates="flow",
    model="flow map",
)
def soflow(
    at: Evaluation,
    *,
    total: int | None = None,
    ratio: float | Schedule | None = None,
    p: float = 1.0,
    eps: float = 0.01,
    square: Norm = mean_square,
    consistency: float = 1.0,
    guidance: Guidance | None = None,
    least: float = 1e-4,
) -> Tensor:
    """Solution flow: f(x, t, s) against f(x + (l - t) v, l, s), flow matching where s = t.

    l = t - rho (t - s), at least `least` below t. With f = a x + b F and the quotient
    q = (f - sg f_l) / (t - l) the consistency loss of a sample is
    (t - l) / |b| q^2 / sg(q^2 + eps)^p, so F is trained at the same strength for all pairs; the
    flow matching loss is r^2 / sg(r^2 + eps)^p / |b_s|, r the residual of the velocity. No
    derivative is taken. `SOFLOW` holds the published settings.

    Args:
        total: training steps over which rho falls; None is its end.
        ratio: rho, a number in (0, 1], or a schedule of step / total; None is
            `ExponentialSchedule()`.
        p: power of the adaptive weight.
        eps: added to the square before that power.
        square: `mean_square`, over elements, or `square_sum`.
        consistency: weight of the consistency loss; the published code has half the gradient of the
            formula, 0.5.
        guidance: a `MixedGuidance` or `Guidance` in the velocity, with `label_dropout`.
        least: t - l at least; l is not below 0.
    """
    inner = at.student.flow_map()
    schedule = ExponentialSchedule() if ratio is None else ratio
    rho = schedule(at.progress) if callable(schedule) else check.positive("ratio", schedule)
    at.diagnostics["ratio"] = rho
    (x,) = at.states(at.t, velocity=True)
    v = learned_velocity(at, x, guidance)
    apart = at.t > at.s
    between = torch.minimum(at.t - rho * (at.t - at.s), at.t - least).clamp_min(0.0)
    step = torch.where(apart, at.t - between, 1.0)
    a, b = inner.skip_out(at.t, at.s)
    a_rate, b_rate = inner.end_rates(at.t, at.t)
    made = at.student.raw(x, at.s)
    # One pass for both kinds of samples: each term's weight is that of the sample's own kind.
    there = at.frozen(at.moved(x, between, v), at.s).detach()
    residual = Combination(
        [
            (x.x, torch.where(apart, a / step, a_rate)),
            (made, torch.where(apart, b / step, b_rate)),
            (v, torch.where(apart, 0.0, -1.0).double()),
        ]
    ) - there * torch.where(apart, 1.0 / step, 0.0)
    flow = 1.0 / abs(b_rate) if isinstance(b_rate, float) else 1.0 / b_rate.abs()
    strength = torch.where(apart, consistency * step / torch.where(apart, b, 1.0).abs(), flow)
    return adaptive(square(residual), p, eps) * strength
