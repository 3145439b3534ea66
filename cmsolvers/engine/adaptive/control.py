"""From the error of a sample's step to the size of its next one.

Powers are written exp(p log e): torch's pow takes another path for the tail of a vector, which
would make the last bit of a sample's step size depend on its place in the batch; exp, log and atan
take one path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from cmsolvers.ops.norms import root_mean_square

Memory: TypeAlias = tuple[Tensor, ...]
"""Logarithms of the errors of earlier accepted steps, float64 [B] each, latest first; NaN where
there was none."""

_LEAST_ERROR = 1e-10
_LEAST_REMEMBERED = math.log(1e-4)


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def scaled_error(
    error: Tensor, a: Tensor, b: Tensor, *, rtol: float, atol: float, larger: bool = False
) -> Tensor:
    """Root mean square of error / (atol + rtol max(|a|, |b|)), float64 [B].

    a and b are states, all three [B, ...]; `larger` divides by max(atol, rtol ...), not by the sum.

    Source: Hairer, Norsett & Wanner (1993), eq. II.4.11; Lu et al. (2022), appendix C.4, for the
    larger one.
    """
    scale = torch.maximum(a.detach().abs(), b.detach().abs()).mul_(rtol)
    scale = scale.clamp_min_(atol) if larger else scale.add_(atol)
    return root_mean_square(torch.div(error.detach(), scale, out=scale))


class Decision(NamedTuple):
    """Whether to accept a step [B], by what to change its size [B], and what to remember of it."""

    accept: Tensor
    factor: Tensor
    memory: Memory


class Control(ABC):
    """Decides, for each sample by itself.

    Attributes:
        k: exponent of h in the error of a step: one more than the lower order of the pair.
        min_factor: what a step size changes by where the error is not a number.
    """

    k: float

    min_factor: float

    @abstractmethod
    def decide(self, error: Tensor, memory: Memory, retry: Tensor) -> Decision:
        """What follows from an error, float64 [B], 1 is the tolerance.

        `memory` is that of the decision before, () at the first; `retry` [B] says whether the step
        before was rejected.
        """


@dataclass(frozen=True)
class PIControl(Control):
    """h' = h safety e^-((p + i) / k) e_last^(p / k), within [min_factor, max_factor] h.

    p is `pcoeff` and i `icoeff`. A rejected step is repeated with h safety e^(-1 / k), safety below
    1; the step after it does not grow.

    Source: Hairer, Norsett & Wanner (1993), eq. II.4.13, and Hairer & Wanner, "Solving Ordinary
    Differential Equations II" (1996), eq. IV.2.43, whose beta is p / k and alpha (p + i) / k.
    """

    k: float
    pcoeff: float
    icoeff: float
    safety: float
    min_factor: float
    max_factor: float

    def decide(self, error: Tensor, memory: Memory, retry: Tensor) -> Decision:
        now = torch.log(error.clamp_min(_LEAST_ERROR))
        (earlier,) = memory or (torch.full_like(now, math.nan),)
        last = torch.where(earlier.isnan(), now, earlier)
        accept = error <= 1
        growth = torch.exp(
            now * (-(self.pcoeff + self.icoeff) / self.k) + last * (self.pcoeff / self.k)
        )
        shrink = torch.exp(now * (-1 / self.k)).clamp_max(1.0)
        most = torch.where(retry, min(1.0, self.max_factor), self.max_factor)
        factor = torch.where(
            accept, torch.minimum(growth * self.safety, most), shrink * self.safety
        )
        remembered = torch.where(accept, now.clamp_min(_LEAST_REMEMBERED), earlier)
        return Decision(accept, factor.clamp_min(self.min_factor), (remembered,))


@dataclass(frozen=True)
class FilterControl(Control):
    """A smoothly limited PID: factor = 1 + atan(P - 1), accepted if it is at least `accept_safety`.

    P = e^-b1 e_1^-b2 e_2^-b3 with b1 = (p + i + d) / k, b2 = -(p + 2 d) / k, b3 = d / k; p, i and d
    are `pcoeff`, `icoeff` and `dcoeff`.

    Source: Soderlind, "Digital filters in adaptive time-stepping" (2003), section 3; Soderlind &
    Wang, "Adaptive time-stepping and computational stability" (2006), section 3, for the limiter.
    """

    k: float
    pcoeff: float
    icoeff: float
    dcoeff: float
    accept_safety: float
    min_factor: float = 0.2

    def decide(self, error: Tensor, memory: Memory, retry: Tensor) -> Decision:
        p, i, d = (c / self.k for c in (self.pcoeff, self.icoeff, self.dcoeff))
        now = torch.log(error + 1e-8)
        latest, older = memory or (torch.full_like(now, math.nan),) * 2
        first = torch.where(latest.isnan(), now, latest)
        second = torch.where(older.isnan(), first, older)
        power = torch.exp(now * -(p + i + d) + first * (p + 2 * d) + second * -d)
        factor = torch.atan(power - 1.0) + 1.0
        accept = factor >= self.accept_safety
        memory = torch.where(accept, now, latest), torch.where(accept, latest, older)
        return Decision(accept, factor, memory)
