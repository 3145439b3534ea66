"""Paths that are written down, not solved for: the rectified flow and TrigFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmsolvers import checks as check
from cmsolvers.processes.elementary import Time, exact, maths, ratio
from cmsolvers.processes.sde import Process


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """The straight path x_t = (1 - t) x_0 + t z: t = 0 is data, **t = 1 is noise**.

    Its velocity is z - x_0. Samplers of a denoiser in flow coordinates (`denoisers.from_flow`)
    work with x_t and t themselves, t = 1 included (`flow_times`). In Karras coordinates the level
    is t / (1 - t), infinite at t = 1: samplers start a little earlier there, at
    `sigma_hat(t_max)` = 999 by default (`flow_sigmas`), where x_0 is a thousandth of x_t. Euler's
    method makes the same steps in either coordinates. The SDE is
    dx = -x / (1 - t) dt + sqrt(2 t / (1 - t)) dw, whose coefficients are infinite at t = 1 too:
    t-space solvers want small steps next to it.

    The path has no parameter. A resolution-dependent shift of time changes only the grid on which
    it is sampled: see `flow_times` and `shift_time`.

    Source: Liu et al., "Flow Straight and Fast" (2023), section 2; Lipman et al., "Flow Matching
    for Generative Modeling" (2023), eq. 20-23, which count time from noise to data.
    """

    @property
    def t_min(self) -> float:
        return 1e-3

    @property
    def t_max(self) -> float:
        """0.999: the last of a thousand steps before the level is infinite."""
        return 0.999

    @property
    def prior_std(self) -> float:
        return 1.0

    def alpha(self, t: Time) -> Time:
        return 1.0 - exact(t)

    def sigma(self, t: Time) -> Time:
        return exact(t)

    def drift_factor(self, t: Time) -> Time:
        """-1 / (1 - t)."""
        return ratio(-1.0, self.alpha(t))

    def diffusion(self, t: Time) -> Time:
        """sqrt(2 t / (1 - t))."""
        square = 2.0 * self.sigma_hat(t)
        return maths(square).sqrt(square)

    def sigma_hat(self, t: Time) -> Time:
        """The ratio t / (1 - t)."""
        return ratio(exact(t), self.alpha(t))

    def t_of_sigma(self, sigma_hat: Time) -> Time:
        """sigma_hat / (1 + sigma_hat), the inverse."""
        level = exact(sigma_hat)
        return level / (1.0 + level)


@dataclass(frozen=True)
class TrigFlow(Process):
    """The circular path x_t = cos(t) x_0 + sin(t) sigma_data z, t in [0, pi/2].

    The noise has the spread of the data, so x_t keeps it at all t. In Karras coordinates the level
    is sigma_data tan(t).

    Args:
        sigma_data: standard deviation of the data, positive.
        sigma_min: the level of `t_min`, positive.
        sigma_max: the level of `t_max`, above sigma_min.

    Raises:
        TypeError: an argument that is no number.
        ValueError: levels that are not positive and finite, or sigma_min not below sigma_max.

    Source: Lu & Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models"
    (2025), section 3.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check.positive("sigma_data", self.sigma_data)
        check.sigma_range(self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        """arctan(sigma_min / sigma_data)."""
        return math.atan(self.sigma_min / self.sigma_data)

    @property
    def t_max(self) -> float:
        """arctan(sigma_max / sigma_data)."""
        return math.atan(self.sigma_max / self.sigma_data)

    @property
    def prior_std(self) -> float:
        return self.sigma_data

    def alpha(self, t: Time) -> Time:
        t = exact(t)
        return maths(t).cos(t)

    def sigma(self, t: Time) -> Time:
        """sigma_data sin t."""
        t = exact(t)
        return self.sigma_data * maths(t).sin(t)

    def drift_factor(self, t: Time) -> Time:
        t = exact(t)
        return -maths(t).tan(t)

    def diffusion(self, t: Time) -> Time:
        """sigma_data sqrt(2 tan t)."""
        t = exact(t)
        return self.sigma_data * maths(t).sqrt(2.0 * maths(t).tan(t))

    def sigma_hat(self, t: Time) -> Time:
        """sigma_data tan t."""
        t = exact(t)
        return self.sigma_data * maths(t).tan(t)

    def t_of_sigma(self, sigma_hat: Time) -> Time:
        """arctan(sigma_hat / sigma_data)."""
        level = exact(sigma_hat)
        return maths(level).atan(level / self.sigma_data)
