"""Exact flow maps of Gaussian data, as functions and as networks of every parametrisation."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers.denoisers import AverageVelocity, FlowMap, TrajectoryFunction, TrigFlowMap
from cmsolvers.processes.coordinates import Coordinates

SD, MEAN = 0.5, 0.3


def column(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def carried(path: Coordinates, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Where the probability-flow ODE takes x from t to s; data N(MEAN, SD^2)."""
    a, b = (column(path.alpha(level.double()), x) for level in (t, s))
    p, q = (column(path.sigma(level.double()), x) for level in (t, s))
    grown = ((b * b * SD**2 + q * q) / (a * a * SD**2 + p * p)).sqrt()
    return b * MEAN + grown * (x - a * MEAN)


def velocity(path: Coordinates, x: Tensor, t: Tensor) -> Tensor:
    """dx/dlevel of that ODE."""
    level = t.double()
    a, p = column(path.alpha(level), x), column(path.sigma(level), x)
    da, dp = (column(rate, x) for rate in path.pair_rates(level))
    gain = (a * da * SD**2 + p * dp) / (a * a * SD**2 + p * p)
    return da * MEAN + gain * (x - a * MEAN)


class ExactNetwork:
    """F of a flow map whose f is exact; `map` is set when the map is made."""

    map: FlowMap

    def __call__(self, x_in: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x = x_in / column(torch.as_tensor(self.map.c_in(t)).expand(len(t)), x_in)
        off = torch.where(s == t, 0.5 * t, s)  # where F is not 0 / 0
        a, b = (column(torch.as_tensor(w).expand(len(t)), x) for w in self.map.skip_out(t, off))
        da, db = (column(torch.as_tensor(w).expand(len(t)), x) for w in self.map.end_rates(t, t))
        away = (carried(self.map.coordinates, x, t, off) - a * x) / b
        diagonal = (velocity(self.map.coordinates, x, t) - da * x) / db
        return torch.where(column(s == t, x).bool(), diagonal, away)


def exact_maps() -> dict[str, FlowMap]:
    """An exact map of each parametrisation, each in its own coordinates."""
    found: dict[str, FlowMap] = {}
    for name, make in {
        "flow": lambda net: AverageVelocity(net),
        "karras": lambda net: AverageVelocity(net, "karras"),
        "trigflow": lambda net: TrigFlowMap(net, SD, second="end"),
        "ctm": lambda net: TrajectoryFunction(net, SD, 1e-30, c_noise="sigma"),
    }.items():
        net = ExactNetwork()
        found[name] = net.map = make(net)
    return found
