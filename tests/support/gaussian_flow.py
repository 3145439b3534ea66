"""The probability-flow ODE of Gaussian data in closed form, in any coordinates.

Data are N(mean, diag(std^2)). With the path's standard deviation q(t)^2 = alpha(t)^2 std^2 +
sigma(t)^2 the flow map is f_{t->s}(x) = alpha(s) mean + (x - alpha(t) mean) q(s) / q(t).

The library has oracles of its own, `denoisers.oracles` (denoisers in Karras coordinates) and
`tasks.exact_problems` (mixtures on any path). What is here is computed apart from both, so that
they and all else can be tested against it, and it can be differentiated in x and both times, in
forward mode too, which a tabled flow map cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmsolvers.denoisers.flow_maps import FlowMap
from cmsolvers.processes.coordinates import Coordinates
from support.columns import column


def _exactly(level: Any) -> Any:
    return level.double() if isinstance(level, Tensor) else level


@dataclass(frozen=True, eq=False)
class GaussianFlow:
    """Of data N(mean, diag(std^2)), numbers or tensors like a sample; levels are numbers or [B]."""

    mean: float | Tensor
    std: float | Tensor

    def spread(self, path: Any, t: Any, x: Tensor) -> Any:
        """q(t) against samples x; `path` is a process or coordinates."""
        t = _exactly(t)
        alpha, sigma = column(path.alpha(t), x), column(path.sigma(t), x)
        return ((alpha * self.std) ** 2 + sigma**2) ** 0.5

    def carried(self, path: Any, x: Tensor, t: Any, s: Any) -> Tensor:
        """f_{t->s}(x): where the ODE takes x."""
        t, s = _exactly(t), _exactly(s)
        grown = self.spread(path, s, x) / self.spread(path, t, x)
        away = x - column(path.alpha(t), x) * self.mean
        made: Tensor = column(path.alpha(s), x) * self.mean + grown * away
        return made

    def clean(self, path: Any, x: Tensor, t: Any) -> Tensor:
        """E[x_0 | x_t]."""
        t = _exactly(t)
        alpha = column(path.alpha(t), x)
        gain = alpha * self.std**2 / self.spread(path, t, x) ** 2
        made: Tensor = self.mean + gain * (x - alpha * self.mean)
        return made

    def velocity(self, path: Coordinates, x: Tensor, t: Any) -> Tensor:
        """dx/dt of the ODE."""
        t = _exactly(t)
        alpha, sigma = column(path.alpha(t), x), column(path.sigma(t), x)
        alpha_rate, sigma_rate = (column(rate, x) for rate in path.pair_rates(t))
        rate = alpha * alpha_rate * self.std**2 + sigma * sigma_rate
        gain = rate / self.spread(path, t, x) ** 2
        made: Tensor = alpha_rate * self.mean + gain * (x - alpha * self.mean)
        return made

    def raw(self, model: FlowMap, x_in: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """F of a flow map that is exact, of what its network gets: c_in x and times as they are."""
        path, x = model.coordinates, x_in / column(model.c_in(t), x_in)
        a, b = (column(weight, x) for weight in model.skip_out(t, s))
        # On the diagonal F is given by the velocity; next to it the quotient is 0 / 0. Its rate in
        # t there is that along the diagonal: every identity multiplies it by b = 0.
        near = column((t - s).abs() < 1e-7, x) > 0
        apart = torch.where(near, torch.ones_like(x), b * torch.ones_like(x))
        away = (self.carried(path, x, t, s) - a * x) / apart
        a_rate, b_rate = (column(rate, x) for rate in model.end_rates(t, t))
        there = (self.velocity(path, x, t) - a_rate * x) / b_rate
        return torch.where(near, there, away)
