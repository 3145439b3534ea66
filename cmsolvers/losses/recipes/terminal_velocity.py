"""Terminal velocities: the end of a map moves as the flow does there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.derivatives.total_derivative import Method
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.identities import lagrangian
from cmsolvers.losses.formulas.trajectories import further_level
from cmsolvers.losses.formulas.weights import mean_square
from cmsolvers.losses.times.basic_times import LogitNormal
from cmsolvers.losses.times.distribution import Distribution
from cmsolvers.losses.times.trajectory_times import GapPairs


@dataclass(frozen=True, eq=False)
class ScaledVelocity:
    """The guided velocity w v + (1 - w) F^-(x, s, s | unconditional) as what is to be learned.

    Args:
        scale: w: a positive number, or the name of the entry of `extra_args` that holds it, a
            number or a tensor [B], which the network then reads too.
        unconditional: entries of `extra_args` that say nothing of the sample: null labels [B], and
            a scale of 1 where the network reads it.

    Raises:
        ValueError: a number that is not positive.

    Source: Zhou et al., "Terminal Velocity Matching" (2025), section 4.
    """

    scale: float | str = 1.0
    unconditional: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.scale, str):
            check.positive("scale", self.scale)

    def weight(self, at: Evaluation) -> float | Tensor:
        """w, a number or float64 [B].

        Raises:
            ValueError: `extra_args` has no such entry, or it is no number or tensor [B].
        """
        if not isinstance(self.scale, str):
            return self.scale
        found = at.extra.get(self.scale)
        if isinstance(found, Tensor) and found.shape in (at.x0.shape[:1], torch.Size([])):
            return found.detach().double().expand(len(at.x0))
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            return check.positive(f"extra_args[{self.scale!r}]", found)
        raise ValueError(
            f"scale: extra_args[{self.scale!r}] must be a number or a tensor of shape [B]; got "
            f"{check.describe(found)}"
        )

    def velocity(self, at: Evaluation, y: State) -> Combination:
        """The velocity of the pair that y was made of, guided, without gradient."""
        w, nothing = self.weight(at), at.target.given(self.unconditional)
        return of(y.velocity) * w + nothing.velocity(y).detach() * (1.0 - w)


@loss(
    identity="lagrangian",
    source="Zhou et al., 'Terminal Velocity Matching' (2025), eq. 12, and published code",
    times=GapPairs(),
    coordinates="flow",
    model="flow map",
)
def tvm(
    at: Evaluation,
    *,
    guidance: ScaledVelocity | None = None,
    through: bool = True,
    matching: Distribution[Tensor] = LogitNormal(-0.4, 1.0),  # noqa: B008
    derivative: Method = "jvp",
) -> Tensor:
    """Terminal velocity matching: |d/ds f_{t->s}(x_t) - v^-(f, s)|^2 and flow matching at s'.

    v^- is the diagonal of the target, an average of the model as a rule; the gradient goes through
    the derivative in s. Both terms are means over elements, of residuals over the scale w of
    guidance. The first is 0 where s = t. x_{s'} has the noise of x_t, and a level of its own.

    Args:
        guidance: a `ScaledVelocity`, for a model of guided velocities; None is that of the pair.
        through: whether the gradient goes through dF/ds too, or through F alone.
        matching: distribution of s', a `Distribution` of single levels and one uniform number.
        derivative: "jvp" or "finite_difference".
    """
    level = further_level(at, matching, at.uniform()[:, 0], "matching")
    y, x = at.states(level, at.t, velocity=True)
    w = 1.0 if guidance is None else guidance.weight(at)
    through = check.flag("through", through)
    residual = lagrangian(at, x, at.s, at.target, derivative=derivative, through=through)
    terminal = mean_square(residual / w)
    aim = of(y.velocity) if guidance is None else guidance.velocity(at, y)
    flow = mean_square((at.student.again().velocity(y) - aim) / w)
    return torch.where(at.s < at.t, terminal, 0.0) + flow
