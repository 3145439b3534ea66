"""The discrete chain of DDPM as a process in continuous time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.processes.betas import Array, betas_of, levels_of, spaced
from cmsolvers.processes.elementary import Time, exact, maths, ratio
from cmsolvers.processes.sde import Process


class _Table(NamedTuple):
    """Finite levels of the chain and the slopes of ln sigma_hat after each, twice."""

    levels: list[float]
    slopes: list[float]
    level_array: Array
    slope_array: Array


_Point: TypeAlias = tuple[Time, Time, Time, Time]
"""Where the path is: sigma_hat = p / q, as (p, q, dp/dt, dq/dt).

Two numbers instead of one keep alpha = q / h and sigma = p / h, h = sqrt(p^2 + q^2), finite and
exact where sigma_hat is 0 and where it is infinite.
"""


def _within(t: Time, end: float) -> Time:
    if isinstance(t, Tensor):
        return t.clamp(0.0, end)
    return min(max(t, 0.0), end)


def _rounded(t: Time) -> Time:
    if isinstance(t, Tensor):
        return t.round()
    return float(round(t))


def _check_steps(value: object, *, least: int) -> None:
    """Raise unless num_steps is an int; betas in its place are told where they belong."""
    several = getattr(value, "ndim", None) == 1 or isinstance(value, (list, tuple))
    if isinstance(value, Sized) and several:
        raise TypeError(
            f"num_steps must be an int; got {check.describe(value)}: betas are the schedule, "
            f"DDPM({len(value)}, betas)"
        )
    check.count("num_steps", value, least=least)


@dataclass(frozen=True)
class DDPM(Process):
    """The chain of DDPM: betas, levels, and the variance-preserving process through them.

    Time is what networks of this kind get: 0 to num_steps - 1, where index t has met t + 1
    noisings; -1 is the clean sample. The process goes through the chain's alphas_bar at every
    integer and is continuous in between, so its transitions from one integer to another are those
    of the chain. Between two integers ln sigma_hat is linear in t, as the well-known samplers
    interpolate; from -1 to 0 sigma_hat is linear; in the last step of a chain that ends without
    signal 1 / sigma_hat is linear. Drift and diffusion jump at the integers, where they are those
    of the step to come. Above num_steps - 1 the last slope goes on; times below -1 count as -1.

    Args:
        num_steps: steps of the chain, at least 2 (3 with `zero_terminal_snr`).
        schedule: "linear" (Ho), "scaled_linear" (latent diffusion: linear in sqrt(beta)), "cosine"
            (Nichol & Dhariwal, betas capped at 0.999), or the num_steps betas themselves, each in
            (0, 1), the last of which may be 1.
        beta_start: first beta, in (0, 1); None is 1e-4 for "linear" and 8.5e-4 for "scaled_linear".
            It means nothing for the others.
        beta_end: last beta, not below beta_start; None is 0.02 and 0.012.
        zero_terminal_snr: shift and scale sqrt(alphas_bar) so that it ends in 0 exactly. The last
            level is infinite then, and an eps network says nothing there: use v.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an unknown schedule, betas out of range or of another number, too few steps.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), eq. 4; Nichol & Dhariwal,
    "Improved Denoising Diffusion Probabilistic Models" (2021), eq. 17; Rombach et al.,
    "High-Resolution Image Synthesis with Latent Diffusion Models" (2022); Lin et al., "Common
    Diffusion Noise Schedules and Sample Steps are Flawed" (2024), algorithm 1.
    """

    num_steps: int = 1000
    schedule: str | Sequence[float] = "linear"
    beta_start: float | None = None
    beta_end: float | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        zero = check.flag("zero_terminal_snr", self.zero_terminal_snr)
        _check_steps(self.num_steps, least=3 if zero else 2)
        if not isinstance(self.schedule, str):
            # A tuple can be hashed, and nobody can change it.
            object.__setattr__(self, "schedule", tuple(check.floats("schedule", self.schedule)))
        self._table  # noqa: B018 - refuses bad arguments here and not at first use

    @cached_property
    def _betas(self) -> Array:
        return betas_of(self.num_steps, self.schedule, self.beta_start, self.beta_end)

    @cached_property
    def _levels(self) -> Array:
        return levels_of(self._betas, self.zero_terminal_snr)

    @cached_property
    def _table(self) -> _Table:
        levels = self._levels[np.isfinite(self._levels)]
        if len(levels) < max(2, self.num_steps - 1) or not (np.diff(levels) > 0).all():
            raise ValueError(
                f"schedule must have two levels or more, all but the last finite, that float64 can "
                f"tell apart; got {len(levels)} finite of {self.num_steps}"
            )
        logs = np.log(levels)
        slopes = np.append(np.diff(logs), logs[-1] - logs[-2])
        return _Table(levels.tolist(), slopes.tolist(), levels, slopes)

    @property
    def _ends_without_signal(self) -> bool:
        return len(self._table.levels) < self.num_steps

    @property
    def betas(self) -> Tensor:
        """Variances of the noisings, float64 [num_steps] on the host, after any rescaling."""
        if not self.zero_terminal_snr:
            return torch.tensor(self._betas, device="cpu")
        # 1 - alphas_bar[t] / alphas_bar[t - 1], without the cancellation
        kept = np.square(np.append(0.0, self._levels[:-1]))
        gained = np.square(self._levels)
        with np.errstate(invalid="ignore"):
            betas = (gained - kept) / (1.0 + gained)
        betas[-1] = 1.0
        return torch.tensor(betas, device="cpu")

    @property
    def alphas_bar(self) -> Tensor:
        """alpha^2 at t = 0 ... num_steps - 1, float64 [num_steps], descending."""
        return torch.tensor(1.0 / (1.0 + np.square(self._levels)), device="cpu")

    @property
    def sigmas(self) -> Tensor:
        """sigma_hat at t = 0 ... num_steps - 1, float64 [num_steps], ascending."""
        return torch.tensor(self._levels, device="cpu")

    @property
    def t_min(self) -> float:
        return 0.0

    @property
    def t_max(self) -> float:
        """num_steps - 1, or a quarter less where the level there is infinite."""
        return self.num_steps - 1.0 - (0.25 if self._ends_without_signal else 0.0)

    @property
    def prior_std(self) -> float:
        return 1.0

    def _point(self, t: Time) -> _Point[Time]:
        if isinstance(t, Tensor):
            return self._points(t.double())
        t, (levels, slopes, *_) = float(t), self._table
        last = len(levels) - 1
        if t < 0.0:
            return levels[0] * max(t + 1.0, 0.0), 1.0, levels[0], 0.0
        if t >= last and self._ends_without_signal:
            return levels[-1], max(self.num_steps - 1.0 - t, 0.0), 0.0, -1.0
        k = min(int(t), last)
        level = levels[k] * math.exp((t - k) * slopes[k])
        return level, 1.0, level * slopes[k], 0.0

    def _points(self, t: Tensor) -> _Point[Tensor]:
        levels, slopes = self._tensors(t)
        k = t.floor().clamp(0, len(levels) - 1).long()
        p = levels[k] * torch.exp((t - k) * slopes[k])
        q, dp, dq = torch.ones_like(t), p * slopes[k], torch.zeros_like(t)
        early = t < 0
        p = torch.where(early, levels[0] * (t + 1).clamp_min(0), p)
        dp = torch.where(early, levels[0], dp)
        if self._ends_without_signal:
            late = t >= len(levels) - 1
            p = torch.where(late, levels[-1], p)
            q = torch.where(late, (self.num_steps - 1 - t).clamp_min(0), q)
            dp, dq = dp.masked_fill(late, 0.0), dq.masked_fill(late, -1.0)
        return p, q, dp, dq

    @cached_property
    def _held(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the tables on devices."""
        return {name: value for name, value in self.__dict__.items() if name != "_held"}

    def _copied(self, device: torch.device) -> tuple[Tensor, Tensor]:
        levels, slopes = torch.from_numpy(self._table[2]), torch.from_numpy(self._table[3])
        return levels.to(device), slopes.to(device)

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The table on the device of `like`, copied there once: a copy would be waited for."""
        if torch.compiler.is_compiling():
            return self._copied(like.device)
        held = self._held.get(like.device)
        if held is None:
            with torch.inference_mode(False):  # else no later call could have a gradient
                held = self._held[like.device] = self._copied(like.device)
        return held

    def alpha(self, t: Time) -> Time:
        """sqrt(alphas_bar)."""
        p, q, _, _ = self._point(t)
        return q / maths(t).sqrt(p * p + q * q)

    def sigma(self, t: Time) -> Time:
        """sqrt(1 - alphas_bar)."""
        p, q, _, _ = self._point(t)
        return p / maths(t).sqrt(p * p + q * q)

    def sigma_hat(self, t: Time) -> Time:
        """sqrt((1 - alphas_bar) / alphas_bar)."""
        p, q, _, _ = self._point(t)
        return ratio(p, q)

    def drift_factor(self, t: Time) -> Time:
        """The derivative of ln alpha."""
        p, q, dp, dq = self._point(t)
        return ratio(p * (dq * p - dp * q) / (p * p + q * q), q)

    def diffusion(self, t: Time) -> Time:
        """sqrt(-2 d ln alpha / dt)."""
        rate = -2.0 * self.drift_factor(t)
        return maths(rate).sqrt(rate)

    def t_of_sigma(self, sigma_hat: Time) -> Time:
        """The inverse of `sigma_hat`; -1 for a level of 0."""
        level = exact(sigma_hat)
        if isinstance(level, Tensor):
            return self._times(level)
        return self._time(level)

    def _time(self, level: float) -> float:
        levels, slopes, *_ = self._table
        if level < levels[0]:
            return level / levels[0] - 1.0
        if level >= levels[-1] and self._ends_without_signal:
            return self.num_steps - 1.0 - levels[-1] / level
        k = bisect_right(levels, level) - 1
        return k + math.log(level / levels[k]) / slopes[k]

    def _times(self, level: Tensor) -> Tensor:
        levels, slopes = self._tensors(level)
        k = (torch.searchsorted(levels, level.detach(), right=True) - 1).clamp_min(0)
        t = k + torch.log(level / levels[k]) / slopes[k]
        t = torch.where(level < levels[0], level / levels[0] - 1, t)
        if self._ends_without_signal:
            t = torch.where(level >= levels[-1], self.num_steps - 1 - levels[-1] / level, t)
        return t

    def network_time(self, sigma_hat: Time) -> Time:
        """`t_of_sigma` within [0, num_steps - 1]: what a network gets, a fraction in general.

        The `c_noise` of `from_eps(net, process=DDPM())` and its siblings.
        """
        return _within(self.t_of_sigma(sigma_hat), self.num_steps - 1.0)

    def nearest_time(self, sigma_hat: Time) -> Time:
        """`network_time` rounded to the nearest integer, half to even, as a float.

        For networks that look t up in a table: `from_eps(net, process=chain,
        c_noise=chain.nearest_time)`.
        """
        return _rounded(self.network_time(sigma_hat))

    def timesteps(self, n: int, spacing: str = "trailing", offset: int = 0) -> Tensor:
        """A subset of the chain's times, the largest first.

        Args:
            n: how many, in [1, num_steps].
            spacing: "trailing" counts down from the end in even strides, rounded; "leading" counts
                up from 0 in strides of num_steps // n, and so leaves out the end; "linspace" has
                both ends, rounded (a single one is the end).
            offset: added to every "leading" time (1 in some published samplers).

        Returns:
            int64 tensor [n].

        Raises:
            TypeError: n or offset that is no int.
            ValueError: an unknown spacing, n or offset out of range.

        Source: Lin et al. (2024), table 2.
        """
        return torch.tensor(spaced(self.num_steps, n, spacing, offset), device="cpu")
