"""Averages whose profile keeps its shape as training goes on: weights grow as a power of time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmsolvers import checks as check

WIDEST = 1.0 / math.sqrt(12.0)
"""sigma_rel at gamma = 0, where all networks count alike."""


@dataclass(frozen=True)
class PowerDecay:
    """mu = (1 - 1/t)^(gamma + 1) of update t = 1, 2, ...: the network at time s counts as s^gamma.

    The first update copies the network (mu = 0). `EMA(network, decay=PowerDecay(6.94))` uses it.

    Args:
        gamma: the exponent, >= 0; 0 is the mean over all networks.

    Raises:
        TypeError, ValueError: gamma is no number, negative or infinite.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), section 3.1, equations 3 and 4.
    """

    gamma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", check.non_negative("gamma", self.gamma))

    def __call__(self, k: int) -> float:
        """mu of the update that comes after k >= 0 others."""
        k = check.count("k", k, least=0)
        if k == 0:
            return 0.0
        return math.exp((self.gamma + 1.0) * math.log1p(-1.0 / (k + 1)))

    @property
    def sigma_rel(self) -> float:
        """Standard deviation of the profile s^gamma on [0, t], over t."""
        g = self.gamma
        return math.sqrt((g + 1.0) / (g + 3.0)) / (g + 2.0)


def power_decay(sigma_rel: float) -> PowerDecay:
    """The power-function decay of a given relative width.

    gamma is the largest root of gamma^3 + 7 gamma^2 + (16 - s) gamma + (12 - s), s = sigma_rel^-2,
    which is sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)).

    Args:
        sigma_rel: standard deviation of the average's profile in units of the training time, in
            (0, 12^-1/2]: 0.05 and 0.10 are usual, 12^-1/2 = 0.2887 is the plain mean.

    Raises:
        TypeError, ValueError: sigma_rel is no number in that interval.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), section 3.1 and appendix C.
    """
    width = check.positive("sigma_rel", sigma_rel)
    if width > WIDEST:
        raise ValueError(f"sigma_rel must not exceed 12^-1/2 = {WIDEST:.6g}; got {width}")
    s = width**-2
    # The cubic is convex from its largest root on and positive here, so Newton's steps fall to it.
    gamma = math.sqrt(s)
    while True:
        value = ((gamma + 7.0) * gamma + (16.0 - s)) * gamma + (12.0 - s)
        slope = (3.0 * gamma + 14.0) * gamma + (16.0 - s)
        nearer = gamma - value / slope
        if not nearer < gamma:
            return PowerDecay(max(gamma, 0.0))
        gamma = nearer
