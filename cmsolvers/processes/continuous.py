"""VP, sub-VP, VE and Karras: processes in continuous time.

Next to t = 0 everything is built on expm1 and log1p, so sigma keeps its relative accuracy there.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from cmsolvers import checks as check
from cmsolvers.processes.elementary import Time, exact, maths
from cmsolvers.processes.sde import Process

_TINY = sys.float_info.min


@dataclass(frozen=True)
class _Beta(Process):
    """A linear beta(t) on [0, 1]: what VP and sub-VP have in common."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        low, high = (
            check.non_negative("beta_min", self.beta_min),
            check.positive("beta_max", self.beta_max),
        )
        if low > high:
            raise ValueError(f"beta_min must not exceed beta_max; got {low:g} and {high:g}")

    @property
    def t_min(self) -> float:
        """1e-3, as in the paper."""
        return 1e-3

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def prior_std(self) -> float:
        return 1.0

    def beta(self, t: Time) -> Time:
        """beta_min + t (beta_max - beta_min)."""
        return self.beta_min + exact(t) * (self.beta_max - self.beta_min)

    def beta_integral(self, t: Time) -> Time:
        """The integral of beta from 0 to t."""
        t = exact(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of_integral(self, total: Time) -> Time:
        """Inverse of `beta_integral`, without cancellation; right for beta_min = beta_max too."""
        root = maths(total).sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * total)
        # At beta_min = 0 the time of 0 would be 0 / 0.
        return 2 * total / (self.beta_min + root + _TINY)

    def alpha(self, t: Time) -> Time:
        """exp(-integral / 2)."""
        total = self.beta_integral(t)
        return maths(total).exp(-0.5 * total)

    def drift_factor(self, t: Time) -> Time:
        """-beta(t) / 2."""
        return -0.5 * self.beta(t)


@dataclass(frozen=True)
class VP(_Beta):
    """Variance-preserving process, dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw on [0, 1].

    Args:
        beta_min: beta at t = 0, not negative.
        beta_max: beta at t = 1, positive and not below beta_min.

    Raises:
        TypeError: a beta that is no number.
        ValueError: a negative or infinite beta, or beta_min above beta_max.

    Source: Song et al., "Score-Based Generative Modeling through SDEs" (2021), eq. 11 and 32-33.
    """

    def sigma(self, t: Time) -> Time:
        """sqrt(1 - exp(-integral))."""
        total = self.beta_integral(t)
        return maths(total).sqrt(-maths(total).expm1(-total))

    def diffusion(self, t: Time) -> Time:
        """sqrt(beta(t))."""
        rate = self.beta(t)
        return maths(rate).sqrt(rate)

    def sigma_hat(self, t: Time) -> Time:
        """sqrt(exp(integral) - 1)."""
        total = self.beta_integral(t)
        return maths(total).sqrt(maths(total).expm1(total))

    def t_of_sigma(self, sigma_hat: Time) -> Time:
        """The inverse of `sigma_hat`."""
        level = exact(sigma_hat)
        return self._time_of_integral(maths(level).log1p(level * level))


@dataclass(frozen=True)
class SubVP(_Beta):
    """Sub-variance-preserving process: the mean of VP, and the noise variance of VP squared.

    dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 integral))) dw, sigma(t) = 1 - exp(-integral).

    Args:
        beta_min: beta at t = 0, not negative.
        beta_max: beta at t = 1, positive and not below beta_min.

    Raises:
        TypeError: a beta that is no number.
        ValueError: a negative or infinite beta, or beta_min above beta_max.

    Source: Song et al., "Score-Based Generative Modeling through SDEs" (2021), eq. 12 and 29.
    """

    def sigma(self, t: Time) -> Time:
        """1 - exp(-integral)."""
        total = self.beta_integral(t)
        return -maths(total).expm1(-total)

    def diffusion(self, t: Time) -> Time:
        """sqrt(beta(t) (1 - exp(-2 integral)))."""
        total = self.beta_integral(t)
        return maths(total).sqrt(self.beta(t) * -maths(total).expm1(-2 * total))

    def sigma_hat(self, t: Time) -> Time:
        """2 sinh(integral / 2)."""
        total = self.beta_integral(t)
        return 2 * maths(total).sinh(0.5 * total)

    def t_of_sigma(self, sigma_hat: Time) -> Time:
        """The inverse of `sigma_hat`."""
        level = exact(sigma_hat)
        return self._time_of_integral(2 * maths(level).asinh(0.5 * level))


@dataclass(frozen=True)
class VE(Process):
    """Variance-exploding process: alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t.

    t in [0, 1]; at t = 0 the path already carries sigma_min, as in the published code.

    Args:
        sigma_min: level at t = 0, positive.
        sigma_max: level at t = 1, above sigma_min.

    Raises:
        TypeError: a level that is no number.
        ValueError: levels that are not positive and finite, or sigma_min not below sigma_max.

    Source: Song et al., "Score-Based Generative Modeling through SDEs" (2021), eq. 9 and 30.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        check.sigma_range(self.sigma_min, self.sigma_max)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def t_min(self) -> float:
        """1e-5, as in the paper."""
        return 1e-5

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def alpha(self, t: Time) -> Time:
        return 1.0 + 0.0 * exact(t)

    def sigma(self, t: Time) -> Time:
        """sigma_min (sigma_max / sigma_min)^t."""
        t = exact(t)
        return self.sigma_min * maths(t).exp(self._rate * t)

    def drift_factor(self, t: Time) -> Time:
        return 0.0 * exact(t)

    def diffusion(self, t: Time) -> Time:
        """sigma(t) sqrt(2 ln(sigma_max / sigma_min))."""
        return self.sigma(t) * math.sqrt(2 * self._rate)

    def t_of_sigma(self, sigma_hat: Time) -> Time:
        """ln(sigma_hat / sigma_min) / ln(sigma_max / sigma_min)."""
        level = exact(sigma_hat)
        return maths(level).log(level / self.sigma_min) / self._rate


@dataclass(frozen=True)
class Karras(Process):
    """The coordinates of EDM, sigma(t) = t: dx = sqrt(2 t) dw on [sigma_min, sigma_max].

    Its ODE is dx/dt = -t score(x, t).

    Args:
        sigma_min: level at the start, `t_min`, positive.
        sigma_max: level at the prior, `t_max`, above sigma_min.

    Raises:
        TypeError: a level that is no number.
        ValueError: levels that are not positive and finite, or sigma_min not below sigma_max.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), section 3.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check.sigma_range(self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def alpha(self, t: Time) -> Time:
        return 1.0 + 0.0 * exact(t)

    def sigma(self, t: Time) -> Time:
        return exact(t)

    def drift_factor(self, t: Time) -> Time:
        return 0.0 * exact(t)

    def diffusion(self, t: Time) -> Time:
        t = exact(t)
        return maths(t).sqrt(2 * t)

    def t_of_sigma(self, sigma_hat: Time) -> Time:
        return exact(sigma_hat)
