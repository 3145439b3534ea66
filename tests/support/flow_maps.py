"""Exact flow maps of Gaussian data as networks of every parametrisation."""

from __future__ import annotations

from torch import Tensor

from cmsolvers.denoisers import AverageVelocity, FlowMap, TrajectoryFunction, TrigFlowMap
from support.gaussian_flow import GaussianFlow

SD, MEAN = 0.5, 0.3
FLOW_OF_DATA = GaussianFlow(MEAN, SD)
carried, velocity = FLOW_OF_DATA.carried, FLOW_OF_DATA.velocity


class ExactNetwork:
    """F of a flow map whose f is exact; `map` is set when the map is made."""

    map: FlowMap

    def __call__(self, x_in: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return FLOW_OF_DATA.raw(self.map, x_in, t, s)


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
