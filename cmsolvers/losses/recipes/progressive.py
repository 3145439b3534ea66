"""Progressive distillation: one step of the student is two of its teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation import Evaluation
from cmsolvers.losses.flow_times import AnglePairs
from cmsolvers.losses.loss import loss
from cmsolvers.losses.trajectories import ddim_clean
from cmsolvers.losses.weights import LevelWeight, mean_square
from cmsolvers.processes.coordinates import Coordinates

Halfway: TypeAlias = Callable[[Coordinates, Tensor, Tensor], Tensor]
"""(coordinates, t, s) -> the level between, float64 [B]."""


def truncated_snr(ratio: Tensor) -> Tensor:
    """max(SNR, 1), SNR = 1 / ratio^2, of the ratio sigma / alpha: errors in x_0 and in eps, larger.

    Source: Salimans & Ho (2022), eq. 9.
    """
    return (1.0 / (ratio * ratio)).clamp_min(1.0)


def snr_plus_one(ratio: Tensor) -> Tensor:
    """SNR + 1: with it an error in x_0 is one in v = alpha eps - sigma x_0 of a VP path.

    Source: Salimans & Ho (2022), eq. 10.
    """
    return 1.0 / (ratio * ratio) + 1.0


def flow_velocity(ratio: Tensor) -> Tensor:
    """1 / t^2 = (1 + 1 / ratio)^2: with it an error in x_0 is one in v = z - x_0 of a flow."""
    return (1.0 + 1.0 / ratio) ** 2


def halfway_level(path: Coordinates, t: Tensor, s: Tensor) -> Tensor:
    """(t + s) / 2 of the model's own levels."""
    return (t + s) / 2.0


def halfway_angle(path: Coordinates, t: Tensor, s: Tensor) -> Tensor:
    """Half the way in the angle arctan(sigma / alpha): a step of the cosine schedule halved."""
    mean = (torch.atan(path.ratio(t)) + torch.atan(path.ratio(s))) / 2.0
    found: Tensor = path.level(torch.tan(mean))
    return found


def halfway_rho(rho: float = 7.0) -> Halfway:
    """Half the way in ratio^(1/rho): a step of `karras_sigmas` halved.

    Raises:
        ValueError: rho is not positive.
    """
    power = 1.0 / check.positive("rho", rho)

    def halfway(path: Coordinates, t: Tensor, s: Tensor) -> Tensor:
        mean = (path.ratio(t) ** power + path.ratio(s) ** power) / 2.0
        found: Tensor = path.level(mean**rho)
        return found

    return halfway


@loss(
    identity="semigroup",
    source="Salimans & Ho, 'Progressive Distillation for Fast Sampling of Diffusion Models' "
    "(2022), algorithm 2, eq. 9 and 10",
    times=AnglePairs(4),
    coordinates="flow",
    model="denoiser",
    teacher="required",
    pair=True,
)
def progressive_distillation(
    at: Evaluation,
    *,
    weight: LevelWeight = truncated_snr,
    halfway: Halfway = halfway_angle,
) -> Tensor:
    """Progressive distillation: w |D(x, t) - D*|^2, a mean over elements.

    D* is the prediction with which one DDIM step from t to s ends where the teacher's two steps
    end, over the level halfway between; x_0 for s = 0. Afterwards the student is the next teacher
    and the number of steps halves: `times=AnglePairs(steps)` with an explicit number, or
    `times=AnglePairs(1024, last=1, total=...)`, where the caller exchanges the teacher at every
    halving (`times.steps_at(step)` is the student's number of steps).

    Levels may reach pure noise in flow and TrigFlow coordinates, for a teacher in the same ones:
    `AnglePairs(steps, sigma_max=math.inf)`.

    Args:
        weight: w of the ratio sigma / alpha, float64 [B]: `truncated_snr`, `snr_plus_one` (the
            error in v of a VP path), `flow_velocity` (that of a flow).
        halfway: the level between: `halfway_angle`, `halfway_level` or `halfway_rho(7)`; what
            halves the steps of `times`.
    """
    (x,) = at.states(at.t)
    between = halfway(at.path, at.t, at.s)
    aim = ddim_clean(at.teacher, x, between, at.s, at.path)
    return mean_square(at.student.clean(x) - aim) * weight(at.path.ratio(at.t))
