"""What continuous losses do to a tangent before a network is moved along it, and their weights.

A rule takes the tangent g as a `Combination` and gives another one: its norm is one fused pass,
the loss a second, and g is never stored (`Clamped` stores it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.formulas.weights import LevelWeight

TangentRule: TypeAlias = Callable[[Evaluation, Combination], Combination]
"""`rule(at, g) -> g` for a tangent [B, ...]; it may leave numbers in `at.diagnostics`."""


@dataclass(frozen=True)
class Normalised:
    """g / (|g| + c) for each sample; |g| is left in `diagnostics["tangent_norm"]`, float64 [B].

    With it a loss is not linear in the velocity any more. The velocity of a single pair (x_0, z) is
    right on average alone, so that at the exact map the average of what is left is not 0: with a
    teacher's velocity it is.

    Args:
        norm: "l2", the Euclidean norm of a sample, or "rms", that over sqrt(D) for samples of D
            elements. Published codes have either, with the same c: for "l2" the normalised
            tangent has length 1, for "rms" sqrt(D), and c matters more for "rms" by that factor.
        c: not negative.
        nan_rows: "keep", or "zero": a sample whose tangent is not finite gets the tangent 0, and is
            counted in `diagnostics["tangents_zeroed"]`. That spares the weights what comes from a
            teacher or from the derivative; a NaN in the student's own output still reaches them.

    Raises:
        ValueError: an unknown name, a negative c.

    Source: Lu & Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models"
        (2025), section 4.2, for "l2".
    """

    norm: Literal["l2", "rms"] = "l2"
    c: float = 0.1
    nan_rows: Literal["keep", "zero"] = "keep"

    def __post_init__(self) -> None:
        check.choice("norm", self.norm, ("l2", "rms"))
        check.choice("nan_rows", self.nan_rows, ("keep", "zero"))
        check.non_negative("c", self.c)

    def __call__(self, at: Evaluation, g: Combination) -> Combination:
        """The normalised tangent."""
        size = g.detach().norm()
        if self.norm == "rms":
            size = size / math.sqrt(at.size)
        at.diagnostics["tangent_norm"] = size
        scale = 1.0 / (size + self.c)
        if self.nan_rows == "zero":
            fine = size.isfinite()
            at.diagnostics["tangents_zeroed"] = (~fine).sum()
            scale = torch.where(fine, scale, 0.0)  # terms of weight 0 are not read
        return g * scale


normalised = Normalised()
"""The rule of the papers: g / (|g| + 0.1), the Euclidean norm."""


@dataclass(frozen=True)
class Clamped:
    """g clamped to [-limit, limit], element by element.

    Args:
        limit: positive.

    Raises:
        ValueError: limit is not positive.

    Source: Lu & Song (2025), section 4.2, which finds it as good as normalisation with limit 1.
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        check.positive("limit", self.limit)

    def __call__(self, at: Evaluation, g: Combination) -> Combination:
        """The clamped tangent."""
        return of(g.tensor().clamp(-self.limit, self.limit))


def unchanged(at: Evaluation, g: Combination) -> Combination:
    """The tangent itself."""
    return g


def inverse_tangent(sigma_data: float = 0.5) -> LevelWeight:
    """1 / (sigma_data tan t), t the angle of TrigFlow: a prior weight that published codes have.

    It is infinite at t = 0.

    Args:
        sigma_data: standard deviation of the data, positive.

    Raises:
        ValueError: sigma_data is not positive.

    Source: published codes of Lu & Song (2025). In the paper this factor is part of the tangent,
        where it cancels sigma_data sin t and leaves cos t.
    """
    sd = check.positive("sigma_data", sigma_data)

    def weight(t: Tensor) -> Tensor:
        return 1.0 / (sd * t.tan())

    return weight


def power_law_rate(
    sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> LevelWeight:
    """d sigma/du of sigma(u) = (sigma_min^(1/rho) + u (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Args:
        sigma_min: sigma at u = 0, positive.
        sigma_max: sigma at u = 1, above sigma_min.
        rho: positive.

    Raises:
        ValueError: numbers that are not positive, sigma_min not below sigma_max.

    Source: Song et al., "Consistency Models" (2023), theorem 5: the factor 1 / (tau^-1)'(t).
    """
    low, high, power = _power_law(sigma_min, sigma_max, rho)

    def weight(sigma: Tensor) -> Tensor:
        rate: Tensor = power * (high - low) * sigma ** (1.0 - 1.0 / power)
        return rate

    return weight


def _power_law(sigma_min: float, sigma_max: float, rho: float) -> tuple[float, float, float]:
    """(sigma_min^(1/rho), sigma_max^(1/rho), rho), checked."""
    low, high = check.sigma_range(sigma_min, sigma_max)
    power = check.positive("rho", rho)
    return low ** (1.0 / power), high ** (1.0 / power), power
