"""Pairs of levels of the consistency losses: curricula, ECT's, LCM's and multistep ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.times.basic_times import LogNormalPairs, UniformPairs
from cmsolvers.losses.times.curricula import cm_discretization, doubling_discretization
from cmsolvers.losses.times.distribution import Distribution, Pair
from cmsolvers.losses.times.elementwise import exp2, logistic
from cmsolvers.losses.times.step_tables import Rows
from cmsolvers.processes import DDPM
from cmsolvers.processes.coordinates import FLOW
from cmsolvers.schedules import karras_sigmas

_END = 1 << 20  # of a schedule of many steps


@dataclass(frozen=True)
class ScheduledPairs(Distribution[Pair]):
    """Adjacent pairs of a Karras grid of N(k) levels, k the training step.

    A compiler cannot trace how a grid is made: with `total`, a loss is to be called at this step
    (or at any, for steps that are tensors) before a compiled one is.

    Args:
        total: training steps in all; later steps are like the last. None is the end of the
            schedule at every step.
        s0: pairs (in `SquareRootPairs` levels) to begin with.
        s1: pairs at the end.
        sigma_min: the smallest level.
        sigma_max: the largest level.
        rho: of the grid.

    Raises:
        TypeError: a number of another kind.
        ValueError: a number out of range, s1 below s0.
    """

    total: int | None = None
    s0: int = 10
    s1: int = 1280
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    _kept: dict[int, UniformPairs] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _rows: Rows | None = field(init=False, repr=False, compare=False)
    reaches_zero = False

    def __post_init__(self) -> None:
        rows = None
        if self.total is not None:
            rows = Rows(check.count("total", self.total), self.levels, self._pairs)
        object.__setattr__(self, "_rows", rows)
        self._pairs(self.levels(0))

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        """Copies and pickles are made of the arguments: what is kept beside them cannot be."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return partial(type(self), **told), ()

    def levels(self, step: int) -> int:
        """N(k)."""
        raise NotImplementedError

    def _of(self, n: int) -> UniformPairs:
        raise NotImplementedError

    def _pairs(self, n: int) -> UniformPairs:
        kept = self._kept.get(n)
        if kept is None:
            if len(self._kept) > 1:  # a schedule does not come back to what it has left
                self._kept.clear()
            kept = self._kept[n] = self._of(n)
        return kept

    def _grid(self, n: int) -> Tensor:
        return karras_sigmas(n, self.sigma_min, self.sigma_max, self.rho, append_zero=False)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        if self._rows is not None and isinstance(step, Tensor):
            return self._rows.pick(step, u[:, 0])
        n = self.levels(0 if isinstance(step, Tensor) else step)
        return self._pairs(n).quantiles(u, step)


@dataclass(frozen=True)
class DoublingPairs(ScheduledPairs):
    """Improved consistency training's pairs: their number doubles from s0 to s1; lognormal mass.

    Args:
        total: training steps in all; later steps are like the last. None: s1 pairs at every step.
        s0: pairs to begin with.
        s1: pairs at the end.
        sigma_min: the smallest level.
        sigma_max: the largest level.
        rho: of the grid.
        mean: of ln sigma, see `LogNormalPairs`.
        std: of ln sigma.

    Raises:
        TypeError: a number of another kind.
        ValueError: a number out of range, s1 below s0.

    Source: Song & Dhariwal, "Improved Techniques for Training Consistency Models" (2023), sections
        3.4 and 3.5.
    """

    mean: float = -1.1
    std: float = 2.0

    def levels(self, step: int) -> int:
        """N(k) = min(s0 2^floor(k/K'), s1) + 1."""
        if self.total is None:
            return doubling_discretization(_END, _END, self.s0, self.s1)
        return doubling_discretization(min(step, self.total), self.total, self.s0, self.s1)

    def _of(self, n: int) -> UniformPairs:
        return LogNormalPairs(self._grid(n), self.mean, self.std)


@dataclass(frozen=True)
class SquareRootPairs(ScheduledPairs):
    """Pairs of the first consistency training: N(k) grows like a square root, each pair as likely.

    Args:
        total: training steps in all; later steps are like the last. None: s1 pairs at every step.
        s0: levels to begin with.
        s1: pairs at the end.
        sigma_min: the smallest level.
        sigma_max: the largest level.
        rho: of the grid.

    Raises:
        TypeError: a number of another kind.
        ValueError: a number out of range, s1 below s0.

    Source: Song et al., "Consistency Models" (2023), section 6 and appendix C.
    """

    s0: int = 2
    s1: int = 150

    def levels(self, step: int) -> int:
        """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1."""
        if self.total is None:
            return cm_discretization(_END, _END, self.s0, self.s1)
        return cm_discretization(min(step, self.total), self.total, self.s0, self.s1)

    def _of(self, n: int) -> UniformPairs:
        return UniformPairs(self._grid(n))


@dataclass(frozen=True)
class ECTPairs(Distribution[Pair]):
    """Easy consistency tuning: ln t ~ N(mean, std^2), r = max(0, t (1 - q^-(a + 1) n(t))).

    n(t) = 1 + k sigmoid(-b t), and a is the stage: floor(step / stage_steps). The gap between t
    and r closes as the stage rises; in the first ones r is mostly 0, where the loss is that of a
    denoiser.

    Args:
        mean: of ln t.
        std: of ln t.
        q: above 1; 2 with stages, 256 in the one-hour recipe without.
        stage_steps: training steps of a stage; None: stage 0 always.
        k: not negative.
        b: not negative.

    Raises:
        TypeError: a number of another kind.
        ValueError: a number out of range.

    Source: Geng et al., "Consistency Models Made Easy" (2024), section 3.2 and appendix.
    """

    mean: float = -1.1
    std: float = 2.0
    q: float = 256.0
    stage_steps: int | None = None
    k: float = 8.0
    b: float = 1.0

    def __post_init__(self) -> None:
        check.finite("mean", self.mean)
        check.positive("std", self.std)
        check.below("1", 1.0, "q", check.positive("q", self.q))
        check.non_negative("k", self.k)
        check.non_negative("b", self.b)
        if self.stage_steps is not None:
            check.count("stage_steps", self.stage_steps)

    def lower(self, t: Tensor, step: int | Tensor = 0) -> Tensor:
        """r(t) [B] at a training step."""
        begun = 0 if self.stage_steps is None else step // self.stage_steps
        stage = begun.double() if isinstance(begun, Tensor) else float(begun)
        share = exp2(-math.log2(self.q) * (stage + 1.0))
        return (t * (1.0 - share * (1.0 + self.k * logistic(-self.b * t)))).clamp_min(0.0)

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        u = u[:, 0]
        t = torch.exp(self.mean + self.std * torch.special.ndtri(u))
        return t, self.lower(t, step)


@dataclass(frozen=True)
class ChainPairs(Distribution[Pair]):
    """Neighbours on the grid of a teacher's DDIM: 50 points of a chain of 1000, skip 20.

    t is (i + 1) k - 1 for i = 0 ... count - 1, each as likely, with k = steps // count, and s is
    t - k, at least 0; as levels sigma / alpha.

    Args:
        process: the chain.
        count: points of the grid.

    Raises:
        TypeError: process is no `DDPM`, count no int.
        ValueError: count not in [1, steps].

    Source: Luo et al., "Latent Consistency Models" (2023), section 4.3.
    """

    process: DDPM = field(default_factory=lambda: DDPM(schedule="scaled_linear"))
    count: int = 50
    reaches_zero = False

    def __post_init__(self) -> None:
        if not isinstance(self.process, DDPM):
            raise TypeError(f"process must be a DDPM; got {check.describe(self.process)}")
        count, steps = check.count("count", self.count), self.process.num_steps
        if count >= steps:
            raise ValueError(f"count must be below the steps of the chain, {steps}; got {count}")

    @property
    def skip(self) -> int:
        """k, the steps of the chain between two points."""
        return self.process.num_steps // self.count

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        u = u[:, 0]
        t = ((u * self.count).floor() + 1.0) * self.skip - 1.0
        s = (t - self.skip).clamp_min(0.0)
        return self.process.sigma_hat(t), self.process.sigma_hat(s)


@dataclass(frozen=True)
class AnnealedPairs(Distribution[Pair]):
    """Neighbours of an even grid of N pairs in flow coordinates, N growing from `least` to `most`.

    ln N is linear in the training step; the levels are (i + 1) / N and i / N.

    Args:
        total: training steps until N is `most`; None: it always is.
        least: N to begin with.
        most: N at the end.
        largest: the largest level, in (0, 1], in place of 1: at 1 nothing is left of the data, and
            a teacher in Karras coordinates has no such level.

    Raises:
        TypeError: a number of another kind.
        ValueError: a number out of range, most below least.

    Source: Heek et al., "Multistep Consistency Models" (2024), section 3.2.
    """

    total: int | None = None
    least: int = 64
    most: int = 1280
    largest: float = 1.0
    coordinates = FLOW

    def __post_init__(self) -> None:
        if self.total is not None:
            check.count("total", self.total)
        check.within("largest", check.positive("largest", self.largest), 0.0, 1.0)
        least, most = check.count("least", self.least), check.count("most", self.most)
        if most < least:
            raise ValueError(f"most must not be below least; got {most} below {least}")

    def count(self, step: int | Tensor) -> float | Tensor:
        """N at a step."""
        if self.total is None:
            return float(self.most)
        rate = math.log(self.most / self.least)
        if isinstance(step, Tensor):
            share = (step.double() / self.total).clamp(max=1.0)
            return (self.least * torch.exp(share * rate)).round()
        return float(round(self.least * math.exp(min(1.0, step / self.total) * rate)))

    def quantiles(self, u: Tensor, step: int | Tensor) -> Pair:
        n = self.count(step)
        place = (u[:, 0] * n).floor()
        return (place + 1.0) / n * self.largest, place / n * self.largest
