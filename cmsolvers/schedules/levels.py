"""Grids of levels themselves: Karras, exponential, polyexponential, VP."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.schedules.grids import bounds, finish, on_the_host, ramp


@on_the_host
def karras_sigmas(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    append_zero: bool = True,
) -> Tensor:
    """Levels whose rho-th roots are evenly spaced.

    Args:
        n: how many levels above 0, at least 1; a single level is sigma_max.
        sigma_min: smallest level above 0.
        sigma_max: largest level.
        rho: positive; 7 in the paper, 1 is a linear grid.
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: n < 1, a bound or rho that is not positive and finite, sigma_min not below
            sigma_max.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), eq. 5.
    """
    n, low, high = bounds(n, sigma_min, sigma_max)
    root = 1.0 / check.positive("rho", rho)
    try:
        first, last = high**root, low**root
    except OverflowError:
        raise ValueError(f"rho must leave sigma^(1/rho) in float64; got {rho:g}") from None
    levels = (first + ramp(n) * (last - first)) ** (1.0 / root)
    return finish(levels, high, low, append_zero)


@on_the_host
def exponential_sigmas(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, append_zero: bool = True
) -> Tensor:
    """Levels evenly spaced in ln sigma; the limit of `karras_sigmas` as rho grows.

    Args:
        n: how many levels above 0, at least 1; a single level is sigma_max.
        sigma_min: smallest level above 0.
        sigma_max: largest level.
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: n < 1, a bound that is not positive and finite, sigma_min not below sigma_max.

    Source: the VE grid of Song et al., "Score-Based Generative Modeling through SDEs" (2021),
    appendix C.
    """
    return polyexponential_sigmas(n, sigma_min, sigma_max, 1.0, append_zero)


@on_the_host
def polyexponential_sigmas(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 1.0,
    append_zero: bool = True,
) -> Tensor:
    """Levels with ln sigma polynomial in the index.

    ln sigma = ln sigma_min + r^rho ln(sigma_max / sigma_min), where r falls evenly from 1 to 0;
    rho > 1 puts more levels near sigma_min.

    Args:
        n: how many levels above 0, at least 1; a single level is sigma_max.
        sigma_min: smallest level above 0.
        sigma_max: largest level.
        rho: positive; 1 is `exponential_sigmas`.
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: n < 1, a bound or rho that is not positive and finite, sigma_min not below
            sigma_max.

    Source: the polyexponential grid of the k-diffusion library.
    """
    n, low, high = bounds(n, sigma_min, sigma_max)
    power = (1.0 - ramp(n)) ** check.positive("rho", rho)
    return finish(low * torch.exp(power * math.log(high / low)), high, low, append_zero)


@on_the_host
def vp_sigmas(
    n: int,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    t_min: float = 1e-3,
    append_zero: bool = True,
) -> Tensor:
    """Levels sqrt(expm1(integral of beta)) of the VP process, at even times from 1 to t_min.

    Args:
        n: how many levels above 0, at least 1; a single level is the one of t = 1.
        beta_min: beta at t = 0, not negative.
        beta_max: beta at t = 1, above beta_min.
        t_min: last time, in (0, 1).
        append_zero: end with 0.

    Returns:
        float64 tensor of shape [n + 1], or [n] without the zero, strictly descending.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.

    Source: Song et al., "Score-Based Generative Modeling through SDEs" (2021), eq. 33; Karras et
    al. (2022), table 1.
    """
    n = check.count("n", n)
    low, high = check.non_negative("beta_min", beta_min), check.positive("beta_max", beta_max)
    check.below("beta_min", low, "beta_max", high)
    last = check.positive("t_min", t_min)
    check.below("t_min", last, "the final time", 1.0)
    times = 1.0 + ramp(n) * (last - 1.0)
    levels = torch.sqrt(torch.expm1(low * times + 0.5 * (high - low) * times**2))
    if not bool(levels.isfinite().all()):
        raise ValueError(f"beta_max must leave levels that float64 can hold; got {high:g}")
    return finish(levels, levels[0].item(), levels[-1].item(), append_zero)
