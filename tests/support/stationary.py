"""Losses at exact flow maps: is the expected gradient 0?

Data are N(mean, diag(std^2)) in three dimensions, whose flow map is known in closed form in every
coordinates: with the path's marginal standard deviation q(t)^2 = alpha(t)^2 std^2 + sigma(t)^2,
f_{t->s}(x) = alpha(s) mean + (x - alpha(t) mean) q(s) / q(t). The networks below answer exactly
that, plus sum_j theta_j h_j(x, t, s) with ten random smooth directions h_j; a loss is stationary
where its expected gradient in theta is 0 at theta = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction, noise
from cmsolvers.denoisers import EDM, from_flow
from cmsolvers.denoisers.flow_maps import AverageVelocity, FlowMap, TrajectoryFunction, TrigFlowMap
from cmsolvers.processes.coordinates import KARRAS, Coordinates

MEAN = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
STD = torch.tensor([0.25, 0.5, 0.8], dtype=torch.float64)
DIRECTIONS = 10
SIGMA_DATA = 0.5


def data(batch: int, draw: int, seed: int = 1234) -> Tensor:
    """Data of one step, float64 [batch, 3]."""
    z = noise.normal((batch, 3), seed, stream=noise.OTHER, draw=draw, dtype=torch.float64)
    return MEAN + STD * z


def column(level: Tensor) -> Tensor:
    return level.double().reshape(-1, 1)


def spread(path: Coordinates, t: Tensor) -> Tensor:
    """q(t), [B, 3]."""
    return ((path.alpha(t) * STD) ** 2 + path.sigma(t) ** 2).sqrt()


def exact_flow(path: Coordinates, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """f_{t->s}(x), levels [B]."""
    t, s = column(t), column(s)
    return path.alpha(s) * MEAN + (x - path.alpha(t) * MEAN) * spread(path, s) / spread(path, t)


def exact_velocity(path: Coordinates, x: Tensor, t: Tensor) -> Tensor:
    """dx/dt of the ODE, levels [B]."""
    t = column(t)
    alpha, sigma, q = path.alpha(t), path.sigma(t), spread(path, t)
    alpha_rate, sigma_rate = path.pair_rates(t)
    q_rate = (alpha * alpha_rate * STD**2 + sigma * sigma_rate) / q
    return alpha_rate * MEAN + (x - alpha * MEAN) * q_rate / q


def exact_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] in Karras coordinates: a teacher."""
    s = column(torch.as_tensor(sigma, dtype=torch.float64).expand(len(x)))
    return MEAN + STD**2 / (STD**2 + s**2) * (x - MEAN)


class ExactNet(nn.Module):
    """F of an exact map plus directions; `raw(x_in, t, s)` gives the exact F."""

    def __init__(self, raw: Callable[[Tensor, Tensor, Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        self.raw = raw
        self.theta = nn.Parameter(torch.zeros(DIRECTIONS, dtype=torch.float64))
        generator = torch.Generator().manual_seed(seed)
        made = torch.randn(DIRECTIONS, 6, 3, dtype=torch.float64, generator=generator)
        self.register_buffer("mixing", made)

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        end = torch.zeros_like(t) if s is None else s
        squashed = column(t) / (1.0 + column(t)), column(end) / (1.0 + column(end))
        seen = torch.cat([x, *squashed, torch.ones_like(squashed[0])], dim=1)
        h = torch.tanh(torch.einsum("bi,jik->bjk", seen, self.mixing))
        return self.raw(x, t, end) + torch.einsum("j,bjk->bk", self.theta, h)


def same(level: Any) -> Any:
    return level


def exact_map(kind: str, seed: int = 0) -> Any:
    """An exact model with ten directions: "average velocity", "length" (the network gets t - s),
    "trigflow" (one time), "trigflow pair" (two), "trajectory", "consistency", "denoiser", "flow".
    """
    held: list[Any] = []

    def of_map(x_in: Tensor, t: Tensor, s: Tensor) -> Tensor:
        model: FlowMap = held[0]
        end = t - s if model.second == "length" else s
        a, b = model.skip_out(column(t), column(end))
        x = x_in / model.c_in(column(t))
        # On the diagonal F is given by the velocity; next to it the quotient is 0 / 0.
        near = (t - end).abs() < 1e-7
        apart = torch.where(column(near) > 0, torch.ones_like(a * column(t)), b * column(t) ** 0)
        away = (exact_flow(model.coordinates, x, t, end) - a * x) / apart
        a_rate, b_rate = model.end_rates(column(t), column(t))
        there = (exact_velocity(model.coordinates, x, t) - a_rate * x) / b_rate
        return torch.where(column(near) > 0, there, away)

    def of_denoiser(x_in: Tensor, t: Tensor, s: Tensor) -> Tensor:
        model = held[0]
        c_skip, c_out, c_in, _ = model.coefficients(column(t))
        x = x_in / c_in
        path = model.coordinates
        if kind == "consistency":
            aim = exact_flow(KARRAS, x, t, torch.full_like(t, model.sigma_min))
        else:
            aim = path.clean(x, exact_velocity(path, x, t), column(t))
        return (aim - c_skip * x) / c_out

    if kind == "consistency":
        held.append(
            ConsistencyFunction(ExactNet(of_denoiser, seed), SIGMA_DATA, 1e-4, c_noise="sigma")
        )
    elif kind == "denoiser":
        held.append(EDM(ExactNet(of_denoiser, seed), SIGMA_DATA, c_noise="sigma"))
    elif kind == "flow":
        held.append(from_flow(ExactNet(of_denoiser, seed)))
    elif kind == "average velocity":
        held.append(AverageVelocity(ExactNet(of_map, seed)))
    elif kind == "length":
        held.append(AverageVelocity(ExactNet(of_map, seed), second="length"))
    elif kind == "trigflow":
        held.append(TrigFlowMap(ExactNet(of_map, seed), SIGMA_DATA))
    elif kind == "trigflow pair":
        held.append(TrigFlowMap(ExactNet(of_map, seed), SIGMA_DATA, second="end"))
    elif kind == "trajectory":
        held.append(
            TrajectoryFunction(ExactNet(of_map, seed), SIGMA_DATA, sigma_min=1e-9, c_noise="sigma")
        )
    else:
        raise ValueError(kind)
    return held[0]


class Gradient(NamedTuple):
    """The expected gradient in the ten directions, and its Monte-Carlo error; float64 [10] each."""

    mean: Tensor
    error: Tensor

    @property
    def worst(self) -> float:
        """The largest number of standard errors that a direction is away from 0."""
        return float((self.mean / self.error.clamp_min(1e-30)).abs().max())

    @property
    def size(self) -> float:
        return float(self.mean.norm())


def expected_gradient(
    loss: Callable[..., Any],
    model: nn.Module,
    *,
    batches: int = 48,
    size: int = 512,
    first: int = 0,
    **options: Any,
) -> Gradient:
    """E dloss/dtheta at theta = 0, from independent batches.

    `loss` is a public loss, or any callable with its signature that returns something with `.loss`.
    """
    theta = model.get_parameter("net.theta")
    rows = []
    for step in range(first, first + batches):
        found = loss(model, data(size, step), key=7, step=step, **options)
        (gradient,) = torch.autograd.grad(found.loss, theta)
        rows.append(gradient)
    stacked = torch.stack(rows)
    return Gradient(stacked.mean(0), stacked.std(0) / batches**0.5)


STILL = 4.5
"""Standard errors: a stationary loss stays below, in all ten directions."""
MOVES = 9.0
"""A wrong loss must be above."""
