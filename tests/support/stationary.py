"""Losses at exact flow maps: is the expected gradient 0?

Data are Gaussian in three dimensions, whose flow map is known (`gaussian_flow`). The networks below
answer exactly that, plus sum_j theta_j h_j(x, t, s) with ten random smooth directions h_j; a loss
is stationary where its expected gradient in theta is 0 at theta = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction, noise
from cmsolvers.denoisers import EDM, from_flow
from cmsolvers.denoisers.flow_maps import AverageVelocity, FlowMap, TrajectoryFunction, TrigFlowMap
from cmsolvers.processes.coordinates import KARRAS
from support.columns import column
from support.gaussian_flow import GaussianFlow

MEAN = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
STD = torch.tensor([0.25, 0.5, 0.8], dtype=torch.float64)
DIRECTIONS = 10
SIGMA_DATA = 0.5


def data(batch: int, draw: int, seed: int = 1234) -> Tensor:
    """Data of one step, float64 [batch, 3]."""
    z = noise.normal((batch, 3), seed, stream=noise.OTHER, draw=draw, dtype=torch.float64)
    return MEAN + STD * z


FLOW_OF_DATA = GaussianFlow(MEAN, STD)
exact_flow, exact_velocity = FLOW_OF_DATA.carried, FLOW_OF_DATA.velocity


def exact_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] in Karras coordinates: a teacher."""
    return FLOW_OF_DATA.clean(KARRAS, x, torch.as_tensor(sigma, dtype=torch.float64).expand(len(x)))


class ExactNet(nn.Module):
    """F of an exact map plus directions; `raw(x_in, t, s)` gives the exact F."""

    def __init__(self, raw: Callable[[Tensor, Tensor, Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        self.raw = raw
        self.theta = nn.Parameter(torch.zeros(DIRECTIONS, dtype=torch.float64))
        generator = torch.Generator().manual_seed(seed)
        made = torch.randn(DIRECTIONS, 6, 3, dtype=torch.float64, generator=generator)
        self.register_buffer("mixing", made)

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, *, w: Tensor | None = None
    ) -> Tensor:
        """`w` is what a guided student is told; this one stands for a single scale."""
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
        return FLOW_OF_DATA.raw(model, x_in, t, t - s if model.second == "length" else s)

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
