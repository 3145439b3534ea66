"""What progressive distillation and reflow should end in, for the Gaussian data of `stationary`.

Both are closed forms, computed without the library's steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.denoisers import from_flow
from cmsolvers.denoisers.flow_maps import AverageVelocity
from cmsolvers.losses.recipes.progressive import progressive_distillation
from cmsolvers.losses.recipes.reflow import reflow
from support.columns import column
from support.stationary import MEAN, STD, ExactNet

# --- progressive distillation --------------------------------------------------------------------

STEP = math.pi / 16
"""Of the student, in the angle arctan(sigma / alpha); its teacher's are half as long."""
HIGH = torch.linspace(0.25, 0.9, 256, dtype=torch.float64)


def earlier(t: Tensor, turn: float) -> Tensor:
    """The level of a flow that is `turn` nearer to the data, in the angle."""
    tangent = (torch.atan2(t, 1.0 - t) - turn).clamp_min(0.0).tan()
    return tangent / (1.0 + tangent)


def ddim_factor(t: Tensor, u: Tensor) -> Tensor:
    """k of x_u - alpha_u m = k (x_t - alpha_t m), a step of DDIM with the exact D; [B, 3].

    D = m + g (x - alpha_t m) with g = alpha_t s^2 / (alpha_t^2 s^2 + sigma_t^2), and x_u =
    alpha_u D + (sigma_u / sigma_t) (x - alpha_t D).
    """
    t, u = t[:, None], u[:, None]
    gain = (1 - t) * STD**2 / (((1 - t) * STD) ** 2 + t**2)
    return (1 - u) * gain + u / t * (1 - (1 - t) * gain)


def student_of_steps(count: int, step: float = STEP) -> Any:
    """The denoiser whose one DDIM step ends where `count` even ones of the exact denoiser do.

    With two it is the exact student of an exact teacher.
    """

    def raw(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        places = [earlier(t, step * k / count) for k in range(count + 1)]
        total = torch.ones_like(x)
        for high, low in pairwise(places):
            total = total * ddim_factor(high, low)
        t, end = t[:, None], places[-1][:, None]
        gain = (total - end / t) / (1 - end - end / t * (1 - t))
        clean = MEAN + gain * (x - (1 - t) * MEAN)
        return (x - clean) / t

    return from_flow(ExactNet(raw))


def in_steps(model: Any, x0: Tensor, *, turn: float = STEP, **options: Any) -> Any:
    """Progressive distillation over steps of one angle, from the levels `HIGH`."""
    levels = HIGH, earlier(HIGH, turn)
    return progressive_distillation(model, x0[: len(HIGH)], levels=levels, **options)


# --- reflow --------------------------------------------------------------------------------------

CORRELATION = 0.7
"""Of noise and data in a coupling that a model's ODE has not made yet."""


def coupled_noise(x0: Tensor, correlation: float, draw: int) -> Tensor:
    """Unit normals of which each has that correlation with its element of x0."""
    other = noise.normal(x0.shape, 99, stream=noise.OTHER, draw=draw, dtype=torch.float64)
    return correlation * (x0 - MEAN) / STD + math.sqrt(1.0 - correlation**2) * other


def straight_map(correlation: float) -> Any:
    """E[z - x_0 | x_t] of that coupling at x_t = (1 - t) x_0 + t z; 1 is that of the exact ODE."""

    def raw(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        b = column(t)
        a, shared = 1 - b, STD * correlation
        variance = (a * STD) ** 2 + b**2 + 2 * a * b * shared
        covariance = b + a * shared - a * STD**2 - b * shared  # of z - x_0 and x_t
        made: Tensor = covariance / variance * (x - a * MEAN) - MEAN
        return made

    return AverageVelocity(ExactNet(raw))


def on_coupled_pairs(
    model: Any,
    x0: Tensor,
    *,
    step: int,
    noise_of: Callable[..., Tensor] = coupled_noise,
    **options: Any,
) -> Any:
    """Reflow on given pairs of data and noise."""
    return reflow(model, x0, noise=noise_of(x0, CORRELATION, step), step=step, **options)


def uncoupled_noise(x0: Tensor, correlation: float, draw: int) -> Tensor:
    """As large, and of other samples: no longer a pair."""
    return coupled_noise(x0, correlation, draw).roll(1, 0)


def reversed_noise(x0: Tensor, correlation: float, draw: int) -> Tensor:
    """With the other sign."""
    return -coupled_noise(x0, correlation, draw)
