"""Weights and norms that losses share, as functions to pass or to replace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.combination import Combination

LevelWeight: TypeAlias = Callable[[Tensor], Tensor]
"""w(t) -> [B], t float64 [B]."""

PairWeight: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""w(t, s) -> [B], both float64 [B]."""

Norm: TypeAlias = Callable[[Combination], Tensor]
"""The distance of each sample, [B], from a residual [B, ...]."""


def mean_square(residual: Combination) -> Tensor:
    """Mean of the squares over the elements of each sample."""
    return residual.square_sum() / residual.size


def square_sum(residual: Combination) -> Tensor:
    """Sum of the squares over the elements of each sample."""
    return residual.square_sum()


def mean_abs(residual: Combination) -> Tensor:
    """Mean of the absolute values over the elements of each sample."""
    return residual.abs_sum() / residual.size


def norm(residual: Combination) -> Tensor:
    """The Euclidean norm of each sample; its gradient at 0 is 0."""
    return residual.norm()


def pseudo_huber(c: float | None = None) -> Norm:
    """sqrt(|r|^2 + c^2) - c with |.| the norm of each sample.

    Args:
        c: not negative; None is 0.00054 sqrt(D) for samples of D elements.

    Raises:
        ValueError: c is negative.

    Source: Song & Dhariwal, "Improved Techniques for Training Consistency Models" (2023), eq. 8.
    """
    fixed = None if c is None else check.non_negative("c", c)

    def distance(residual: Combination) -> Tensor:
        return residual.norm(0.00054 * math.sqrt(residual.size) if fixed is None else fixed)

    return distance


def elementwise_huber(c: float = 1e-3) -> Norm:
    """Mean of sqrt(r^2 + c^2) - c over the elements of each sample: the form of LCM's code.

    Args:
        c: positive.

    Raises:
        ValueError: c is not positive.

    Source: Luo et al., "Latent Consistency Models" (2023), published code.
    """
    width = check.positive("c", c)

    def distance(residual: Combination) -> Tensor:
        return residual.huber_sum(width) / residual.size

    return distance


def one(t: Tensor, s: Tensor) -> Tensor:
    """1 for every pair."""
    return t.new_ones(t.shape)


def inverse_gap(t: Tensor, s: Tensor) -> Tensor:
    """1 / (t - s): the weight of improved consistency training.

    Source: Song & Dhariwal (2023), section 3.1.
    """
    return (t - s).reciprocal_()


def edm_weight(sigma_data: float = 0.5) -> LevelWeight:
    """w(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, which is 1 / c_out^2 of EDM.

    With it the loss of an untrained network (F = 0) is 1 at all levels.

    Args:
        sigma_data: standard deviation of the data, positive.

    Raises:
        TypeError: sigma_data is no number.
        ValueError: sigma_data is not positive and finite.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
        (2022), table 1.
    """
    variance = check.positive("sigma_data", sigma_data) ** 2

    def weight(sigma: Tensor) -> Tensor:
        return (sigma * sigma + variance) / (sigma * sigma * variance)

    return weight


def adaptive(square: Tensor, p: float, eps: float) -> Tensor:
    """square / sg(square + eps)^p: the adaptive weight of MeanFlow, per sample [B].

    p = 0 is the square itself, p = 1/2 nearly the norm, p = 1 nearly the logarithm.

    Source: Geng et al., "Mean Flows for One-step Generative Modeling" (2025), eq. 22.
    """
    return square / (square.detach() + eps) ** p
