"""Pairs of levels of truncated consistency training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.times.consistency_times import ECTPairs
from cmsolvers.losses.times.distribution import Distribution, Pair

ABOVE = 1e-8
"""How far above the boundary its own samples stand: their targets lie below it."""

_POINTS = 8193


@dataclass(frozen=True)
class TruncatedPairs(Distribution[Pair]):
    """ln t ~ Student-t within [ln start, ln sigma_max], r as in `ECTPairs`; some at the boundary.

    A `share` of the batch, every fourth sample by default, stands at t = start + 1e-8: of the first
    n samples floor(share n). The far tails make nearly all large levels as likely in ln t: with
    0.01 degrees of freedom the density falls as 1 / |ln t|.

    Args:
        start: t', where training begins.
        sigma_max: the largest level.
        mean: location of ln t.
        scale: of ln t, positive.
        freedom: degrees of freedom, positive.
        share: of a batch at the boundary, in [0, 1).
        gap: r(t), as ECT has it.

    Raises:
        TypeError: a number of another kind.
        ValueError: a number out of range.

    Source: Lee et al., "Truncated Consistency Models" (2025), sections 3.3 and 4.1; mean, scale,
        freedom, start, share and the 1e-8 also in its published code, which picks the samples at
        the boundary at random, floor(share B) of a batch.
    """

    start: float = 1.0
    sigma_max: float = 80.0
    mean: float = 0.0
    scale: float = 0.2
    freedom: float = 0.01
    share: float = 0.25
    gap: ECTPairs = field(default_factory=ECTPairs)
    _table: Tensor = field(init=False, repr=False, compare=False)
    _made: dict[torch.device, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        start = check.positive("start", self.start)
        check.below("start", start, "sigma_max", check.positive("sigma_max", self.sigma_max))
        check.finite("mean", self.mean)
        check.positive("scale", self.scale)
        check.positive("freedom", self.freedom)
        check.within("share", self.share, 0.0, 1.0)
        object.__setattr__(self, "_table", self._integrated())
        object.__setattr__(self, "_made", {})

    def _integrated(self) -> Tensor:
        """(distribution function, y), float64 [2, points] over the range.

        With x = (ln t - mean) / scale = sqrt(nu) sinh(y) the density in y is proportional to
        cosh(y)^-nu, smooth and broad whatever nu is; between two points it counts as constant.
        """
        root = self.scale * math.sqrt(self.freedom)
        first, last = (
            math.asinh((math.log(t) - self.mean) / root) for t in (self.start, self.sigma_max)
        )
        y = torch.linspace(first, last, _POINTS, dtype=torch.float64, device="cpu")
        middle = 0.5 * (y[1:] + y[:-1])
        mass = torch.exp(-self.freedom * torch.log(torch.cosh(middle))) * (y[1:] - y[:-1])
        below = torch.cat((torch.zeros(1, dtype=torch.float64, device="cpu"), mass.cumsum(0)))
        return torch.stack((below / below[-1], y))

    def levels(self, u: Tensor) -> Tensor:
        """t [B] whose distribution function is u in (0, 1)."""
        if u.device not in self._made:
            self._made[u.device] = self._table.to(u.device)
        below, y = self._made[u.device]
        k = torch.searchsorted(below, u.contiguous()).clamp(1, _POINTS - 1)
        part = (u - below[k - 1]) / (below[k] - below[k - 1])
        grown = torch.exp(y[k - 1] + part * (y[k] - y[k - 1]))
        # torch.sinh depends on the place in the batch, in its last bit.
        spread = 0.5 * self.scale * math.sqrt(self.freedom)
        return torch.exp(self.mean + spread * (grown - 1.0 / grown)).clamp(
            self.start, self.sigma_max
        )

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        t = self.levels(u[:, 0])
        rows = torch.arange(len(u), device=u.device)
        edge = self.start + ABOVE
        counted = (rows.double() * self.share).floor(), ((rows + 1).double() * self.share).floor()
        t = torch.where(counted[1] > counted[0], edge, t.clamp_min(edge))
        return t, self.gap.lower(t, step)
