"""Profiles of power-function averages, and the weights that make one profile of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmsolvers import checks as check


@dataclass(frozen=True)
class Profile:
    """p(s) = (gamma + 1) s^gamma / end^(gamma + 1) on [0, end]: how a network of time s counts.

    Time is counted in updates. With `PowerDecay` the network of update t counts as the integral of
    p over [t - 1, t], exactly: its mu is (1 - 1/t)^(gamma + 1).

    Args:
        gamma: the exponent, >= 0.
        end: updates that the average has seen, > 0.

    Raises:
        TypeError, ValueError: no such numbers.
    """

    gamma: float
    end: float

    def __post_init__(self) -> None:
        check.non_negative("gamma", self.gamma)
        check.positive("end", self.end)


@dataclass(frozen=True)
class Fit:
    """A combination of profiles.

    Attributes:
        weights: one per profile; their sum is 1.
        error: ||sum of weighted profiles - wanted|| / ||wanted||, in the norm of L2. What is made
            with the weights is off by at most error * ||wanted|| * ||theta - c||, the last norm
            being that of the course of a weight of the network around any constant c.
        gain: root of the sum of squared weights: by how much independent rounding errors of the
            averages grow.
    """

    weights: tuple[float, ...]
    error: float
    gain: float


def overlap(one: Profile, other: Profile) -> float:
    """The integral of the product of two profiles.

    With end <= end', it is (g + 1)(g' + 1) / (g + g' + 1) (end / end')^g' / end'.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), appendix C.
    """
    return float(_overlaps([one], [other])[0, 0])


def _overlaps(rows: Sequence[Profile], columns: Sequence[Profile]) -> np.ndarray:
    """Overlaps of all pairs, float64 [rows, columns]."""
    g, end = (np.array([[v] for v in values], float) for values in _split(rows))
    g2, end2 = (np.array([values], float) for values in _split(columns))
    later = np.maximum(end, end2)
    power = np.where(end <= end2, g2, g)
    ratio = np.minimum(end, end2) / later
    return np.asarray((g + 1) * (g2 + 1) / (g + g2 + 1) * ratio**power / later)


def _split(profiles: Sequence[Profile]) -> tuple[list[float], list[float]]:
    return [p.gamma for p in profiles], [p.end for p in profiles]


def fit(profiles: Sequence[Profile], wanted: Profile) -> Fit:
    """The weights whose combination of profiles is nearest to a wanted one, in float64.

    The least squares of the paper, under the condition that the weights' sum is 1. Without it few
    snapshots lose mass (9 % where four snapshots of 0.05 and 0.10 are to give 0.20), and the
    network shrinks by as much; the distance of the profiles grows by far less.

    Args:
        profiles: at least one; equal ones share their weight.
        wanted: may end earlier or later than any of them.

    Raises:
        ValueError: no profiles.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), section 3.2 and appendix C.
    """
    if not profiles:
        raise ValueError("profiles must hold at least one; got none")
    products, right = _overlaps(profiles, profiles), _overlaps(profiles, [wanted])[:, 0]
    # Unit profiles: their overlaps are cosines, whatever the ends, and well conditioned.
    sizes, size = np.sqrt(np.diag(products)), np.sqrt(overlap(wanted, wanted))
    cosines, target, scale = products / np.outer(sizes, sizes), right / (sizes * size), size / sizes
    # Where the squared distance is stationary, with a multiplier for the condition.
    system = np.block([[cosines, scale[:, None]], [scale[None, :], np.zeros((1, 1))]])
    unit = np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)[0][:-1]
    squared = float(1.0 - 2.0 * (unit @ target) + unit @ cosines @ unit)
    weights = unit * scale
    return Fit(tuple(weights.tolist()), max(squared, 0.0) ** 0.5, float(np.linalg.norm(weights)))
