"""Classifier-free guidance inside of the velocity that a loss learns, so that sampling is one pass.

Source: Geng et al., "Mean Flows for One-step Generative Modeling" (2025), section 4.2 and appendix
B.1; Geng et al., "Improved Mean Flows" (2025), section 4.2; Luo et al., "SoFlow" (2025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.velocity_heads import VelocityHeads
from cmsolvers.engine.mistakes.once import Once
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.labels import check_null, null_label
from cmsolvers.losses.evaluation.model_views import ModelView
from cmsolvers.losses.evaluation.states import State

ONCE = Once()


@dataclass(frozen=True, eq=False)
class Guidance:
    """omega v + kappa u(x, t, t | c) + (1 - omega - kappa) u(x, t, t | null), in place of v.

    Its effective scale is omega / (1 - kappa): 2 with omega = 1, kappa = 0.5. Nothing but
    `label_dropout` trains the null label: give both, with the same null. Samples whose label it
    replaced keep v, as do those outside of the interval.

    Args:
        name: of the label in `extra_args`, a tensor [B, ...].
        null: the label that says nothing: a number, or a tensor of the shape of one label.
        omega: weight of the pair's velocity.
        kappa: weight of the model's own conditional one.
        interval: (low, high): the times with guidance, ends included.

    Raises:
        ValueError: a number that is not finite, an interval in the wrong order.

    Source: Geng et al., "Mean Flows for One-step Generative Modeling" (2025), eq. 19 to 21 of
        version 1, where kappa is in appendix B.1.
    """

    name: str
    null: int | float | Tensor
    omega: float = 1.0
    kappa: float = 0.0
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_null(self.null)
        check.finite("omega", self.omega)
        check.finite("kappa", self.kappa)
        if not self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval must be (low, high); got {self.interval}")

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(omega, kappa) at each time, float64 [B]; (1, 0) is no guidance."""
        full = torch.full_like(t, self.omega), torch.full_like(t, self.kappa)
        return self._inside(t, *full)

    def _inside(self, t: Tensor, omega: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor]:
        """The weights in the interval; (1, 0) outside of it."""
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return torch.where(inside, omega, 1.0), torch.where(inside, kappa, 0.0)

    def velocity(self, at: Evaluation, x: State, velocity: Tensor) -> Combination:
        """The guided velocity at a state, [B, ...], without gradient."""
        omega, kappa = self.weights(x.level)
        if at.dropped is not None:
            omega = torch.where(at.dropped, 1.0, omega)
            kappa = torch.where(at.dropped, 0.0, kappa)
        nothing = at.frozen.given(unlabelled(at.extra, self.name, self.null))
        guided = of(velocity) * omega
        guided += nothing.velocity(x).detach() * (1.0 - omega - kappa)
        if self.kappa != 0.0:
            guided += at.frozen.velocity(x).detach() * kappa
        return guided


@dataclass(frozen=True, eq=False)
class MixedGuidance(Guidance):
    """m (v + d(t) (w - 1) (v - u(x, t, t | null))) + (1 - m) u(x, t, t | c), in place of v.

    The same as `Guidance` with omega = m (1 + d (w - 1)) and kappa = 1 - m, and a strength that
    fades smoothly to 0 at t = 1: d = 1 up to `decay_from`, then 1 - exp(-0.025 q / (1 - q)),
    q = (1 - t) / (1 - decay_from).

    Args:
        name: of the label in `extra_args`, a tensor [B, ...].
        null: the label that says nothing: a number, or a tensor of the shape of one label.
        interval: (low, high): the times with guidance, ends included.
        scale: w.
        mix: m in (0, 1], the share of the pair's velocity.
        decay_from: in (0, 1]; 1 is no decay.

    Raises:
        ValueError: mix or decay_from out of range, a scale that is not finite, an interval in the
            wrong order.

    Source: Luo et al., "SoFlow: Solution Flow Models for One-Step Generative Modeling" (2025),
        section 3.3 and published code.
    """

    omega: float = field(init=False)
    kappa: float = field(init=False)
    scale: float = 1.0
    mix: float = 1.0
    decay_from: float = 1.0

    def __post_init__(self) -> None:
        check.finite("scale", self.scale)
        check.within("mix", check.positive("mix", self.mix), 0.0, 1.0)
        check.within("decay_from", check.positive("decay_from", self.decay_from), 0.0, 1.0)
        object.__setattr__(self, "omega", self.mix * self.scale)
        object.__setattr__(self, "kappa", 1.0 - self.mix)
        super().__post_init__()

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(omega, kappa) at each time, float64 [B]."""
        strength = torch.ones_like(t)
        if self.decay_from < 1.0:
            q = ((1.0 - t) / (1.0 - self.decay_from)).clamp(0.0, 1.0 - 1e-6)
            fading = -torch.expm1(-0.025 * q / (1.0 - q))
            strength = torch.where(t <= self.decay_from, strength, fading)
        omega = self.mix * (1.0 + strength * (self.scale - 1.0))
        return self._inside(t, omega, torch.full_like(t, self.kappa))


@dataclass(frozen=True, eq=False)
class GuidanceInputs:
    """Guidance whose scale and interval are inputs of the network, chosen when it samples.

    Each sample draws a scale omega with density proportional to omega^-power on [1, largest], and
    an interval [low, high] of times, low ~ U(0, 1/2), high ~ U(1/2, 1); samples with s = t have
    [0, 1]. The velocity to learn is v + (1 - 1 / omega) (v_c - v_u) inside of the interval, v
    outside of it and where the label was dropped. v_c and v_u are the model's own at (t, t) for the
    interval [0, 1]: v_c with the label and omega (1 outside of the interval), v_u with the null
    label and omega = 1. A dropped label is dropped in v_c too, where the published code keeps it.

    Args:
        name: of the label in `extra_args`, a tensor [B, ...].
        null: the label that says nothing.
        largest: scale.
        power: of the density, not negative.
        inputs: names of the network's keyword arguments for omega, low and high, tensors [B].

    Raises:
        ValueError: largest below 1, a negative power.

    Source: Geng et al., "Improved Mean Flows: On the Challenges of Fastforward Generative Models"
        (2025), section 4.2 and published code.
    """

    name: str
    null: int | float | Tensor
    largest: float = 8.0
    power: float = 1.0
    inputs: tuple[str, str, str] = ("omega", "t_min", "t_max")

    def __post_init__(self) -> None:
        check_null(self.null)
        if check.positive("largest", self.largest) < 1.0:
            raise ValueError(f"largest must be at least 1; got {self.largest:g}")
        check.non_negative("power", self.power)

    def scales(self, uniform: Tensor) -> Tensor:
        """Scales for uniform numbers, float64 [B]."""
        top, rest = math.log(self.largest), 1.0 - self.power
        if rest == 0.0:
            return torch.exp(uniform * top)
        return torch.exp(torch.log1p(uniform * math.expm1(rest * top)) / rest)

    def velocities(
        self, at: Evaluation, x: State, end: Tensor, velocity: Tensor
    ) -> tuple[Combination, Combination]:
        """(what to learn, the tangent v_c), without gradient; hands the inputs to the model."""
        null_is_trained(at)
        u = at.uniform(3)
        omega, plain = self.scales(u[:, 0]), torch.ones_like(u[:, 0])
        same = end >= x.level
        low = torch.where(same, 0.0, 0.5 * u[:, 1])
        high = torch.where(same, 1.0, 0.5 + 0.5 * u[:, 2])
        inside = (x.level >= low) & (x.level <= high)
        used = torch.where(inside, omega, 1.0)
        at.hand(**self._told(x, omega, low, high))
        whole = torch.zeros_like(plain), plain
        labelled = instantaneous(at.frozen.given(self._told(x, used, *whole)), x)
        nothing = unlabelled(at.extra, self.name, self.null)
        alone = at.frozen.given({**nothing, **self._told(x, plain, *whole)})
        gain = 1.0 - 1.0 / used
        if at.dropped is not None:
            gain = torch.where(at.dropped, 0.0, gain)
        return of(velocity) + (labelled - instantaneous(alone, x)) * gain, labelled

    def _told(self, x: State, *values: Tensor) -> dict[str, object]:
        dtype = torch.promote_types(x.x.dtype, torch.float32)
        return {name: value.to(dtype) for name, value in zip(self.inputs, values, strict=True)}


def learned_velocity(at: Evaluation, x: State, guidance: Guidance | None) -> Tensor:
    """The velocity of the pair that `x` was made of, guided or not, [B, ...]."""
    if guidance is None:
        return x.velocity
    null_is_trained(at)
    return guidance.velocity(at, x, x.velocity).tensor(x.velocity.dtype)


def null_is_trained(at: Evaluation) -> None:
    """Warn once, in a user's line, where labels are never dropped."""
    if at.dropped is None and not torch.compiler.is_compiling():
        ONCE.warn(
            "guidance",
            "guidance asks the model at the null label, which nothing trains here: give "
            "label_dropout=LabelDropout(name, 0.1, null) with the same null",
        )


def instantaneous(view: ModelView, x: State) -> Combination:
    """The velocity of a view at (t, t), without gradient: of its second head where it has one."""
    if isinstance(view.inner, VelocityHeads):
        return of(view.heads(x, x.level)[1].detach())
    return view.velocity(x).detach()


def unlabelled(
    extra: Mapping[str, object], name: str, null: int | float | Tensor
) -> dict[str, object]:
    """The keyword argument `name` with the null label for every sample.

    Raises:
        ValueError: no such argument, or one that is no tensor of labels; a null label of another
            shape or that their dtype does not hold.
    """
    label = extra.get(name)
    if not isinstance(label, Tensor) or label.ndim == 0:
        raise ValueError(
            f"guidance: extra_args[{name!r}] must be a tensor of labels; got "
            f"{check.describe(label)}"
        )
    return {name: null_label("guidance", null, label).expand_as(label)}
