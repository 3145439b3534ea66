"""A mixture in one dimension, whose exact consistency function keeps quantiles.

In one dimension the probability-flow ODE keeps the order of points, so f(x, t) is the quantile of
the data that x is of its own level. Its posterior is skewed, which that of a Gaussian is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.denoisers.flow_maps import TrigFlowMap

WEIGHTS = torch.tensor([0.8, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-0.25, 1.0], dtype=torch.float64)
STDS = torch.tensor([0.15, 0.3], dtype=torch.float64)
SD = float(((WEIGHTS * (STDS**2 + MEANS**2)).sum() - (WEIGHTS * MEANS).sum() ** 2).sqrt())


def mixture_data(batch: int, draw: int) -> Tensor:
    """float64 [batch, 1]."""
    options = {"stream": noise.OTHER, "draw": draw, "dtype": torch.float64}
    u = noise.uniform((batch, 1), 77, **options)
    z = noise.normal((batch, 1), 78, **options)
    which = (u > WEIGHTS[0]).long()
    return MEANS[which] + STDS[which] * z


def cumulative(x: Tensor, sigma: Tensor) -> Tensor:
    """P(x_0 + sigma z < x), x and sigma [B, 1]."""
    spread = (STDS**2 + sigma**2).sqrt()
    return (WEIGHTS * 0.5 * torch.erfc((MEANS - x) / (spread * math.sqrt(2.0)))).sum(1, True)


def density(x: Tensor, sigma: Tensor) -> Tensor:
    spread = (STDS**2 + sigma**2).sqrt()
    u = (x - MEANS) / spread
    return (WEIGHTS * torch.exp(-0.5 * u * u) / (spread * math.sqrt(2 * math.pi))).sum(1, True)


def mixture_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] in Karras coordinates."""
    s = sigma.double().reshape(-1, 1)
    variance = STDS**2 + s**2
    u = (x - MEANS) / variance.sqrt()
    share = torch.softmax(WEIGHTS.log() - 0.5 * u * u - 0.5 * variance.log(), dim=1)
    return (share * (MEANS + STDS**2 / variance * (x - MEANS))).sum(1, True)


def quantile(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact f(x, sigma), differentiable: bisection, then two steps of Newton's method."""
    with torch.no_grad():
        aim = cumulative(x.detach(), sigma.detach())
        low, high = torch.full_like(x, -6.0), torch.full_like(x, 8.0)
        none = torch.zeros_like(sigma)
        for _ in range(20):  # each of Newton's steps squares what is left
            middle = 0.5 * (low + high)
            above = cumulative(middle, none) > aim
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        found = 0.5 * (low + high)
        found = found + (aim - cumulative(found, none)) / density(found, none)
        missing, slope = cumulative(found, none), density(found, none)
    return found + (cumulative(x, sigma) - missing) / slope


class QuantileNet(nn.Module):
    """F of the exact map in TrigFlow coordinates, plus smooth directions."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x_in: Tensor, t: Tensor) -> Tensor:
        t, x = t[:, None], SD * x_in
        f = quantile(x / t.cos(), SD * t.tan())
        exact = (t.cos() * x - f) / (SD * t.sin())
        h = torch.cat([torch.ones_like(x), x, torch.tanh(2.0 * x), torch.sin(3.0 * t) * x], 1)
        return exact + (h * self.theta).sum(1, True)


def mixture_map() -> TrigFlowMap:
    """The exact consistency function with four directions."""
    return TrigFlowMap(QuantileNet(), SD)


def mixture_gradient(
    loss: Callable[..., object], *, batches: int = 12, size: int = 2048, **options: object
) -> tuple[Tensor, Tensor]:
    """Mean and standard error of dloss/dtheta, float64 [4] each."""
    model, rows = mixture_map(), []
    theta = model.get_parameter("net.theta")
    for step in range(batches):
        found: object = loss(model, mixture_data(size, step), key=5, step=step, **options)
        rows.append(torch.autograd.grad(found.loss, theta)[0])  # type: ignore[attr-defined]
    made = torch.stack(rows)
    return made.mean(0), made.std(0) / batches**0.5
