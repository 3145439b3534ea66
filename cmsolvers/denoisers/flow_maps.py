"""Flow maps f_{t->s} around networks: average velocities, TrigFlow's, trajectory functions.

Source: Boffi et al., "Flow Map Matching" (2024), section 2; Kim et al., "Consistency Trajectory
Models" (2024), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.flow_map_base import FlowMap, Pair, Second
from cmsolvers.denoisers.preconditioning import Network, NoiseInput, noise_input
from cmsolvers.denoisers.protocol import Scalar
from cmsolvers.denoisers.second_time import SecondTime
from cmsolvers.ops.rules import edm_input, edm_output
from cmsolvers.processes.coordinates import FLOW, KARRAS, Coordinates
from cmsolvers.processes.coordinates import coordinates as in_coordinates
from cmsolvers.processes.elementary import maths
from cmsolvers.processes.flows import TrigFlow
from cmsolvers.processes.sde import Process

__all__ = ["AverageVelocity", "FlowMap", "TrajectoryFunction", "TrigFlowMap"]


class AverageVelocity(FlowMap):
    """f = x + (s - t) F: the network is the average velocity between the two times.

    Args:
        net: `net(x, c_noise(t), c_noise(s), **extra_args) -> u`, the shape of x.
        coordinates: "flow", x_t = (1 - t) x_0 + t z, or others whose dx/dlevel it averages.
        c_noise: what the network gets for a level, a callable; None is the level itself.
        second: "end": the network gets s; "length": it gets t - s, which MeanFlow found to work a
            little better; a callable: what it makes of (t, s), `step_index(128)` for shortcuts.
        dtype: dtype of the network's input; None is that of x.

    Raises:
        TypeError: net cannot be called, or takes no two times.
        ValueError: an unknown name.

    Source: Geng et al., "Mean Flows for One-step Generative Modeling" (2025), eq. 3 and 12.
    """

    def __init__(
        self,
        net: Network,
        coordinates: str | Process | Coordinates = FLOW,
        *,
        c_noise: Callable[[Scalar], Scalar] | None = None,
        second: Literal["end", "length"] | SecondTime = "end",
        dtype: torch.dtype | None = None,
    ) -> None:
        path = in_coordinates("coordinates", coordinates)
        handed = _itself if c_noise is None else check.function("c_noise", c_noise)
        super().__init__(net, path, handed, second, dtype)

    def skip_out(self, t: Scalar, s: Scalar) -> Pair:
        return 1.0, s - t

    def start_rates(self, t: Scalar, s: Scalar) -> Pair:
        return 0.0, -1.0

    def end_rates(self, t: Scalar, s: Scalar) -> Pair:
        return 0.0, 1.0


class TrigFlowMap(FlowMap):
    """f = cos(t - s) x - sin(t - s) sigma_data F(x / sigma_data, t[, s]), in TrigFlow coordinates.

    Args:
        net: `net(x / sigma_data, c_noise(t)[, c_noise(s)], **extra_args) -> F`.
        sigma_data: standard deviation of the data, positive.
        c_noise: what the network gets for t, a callable; None is t itself.
        second: None: a consistency function, which ends at s = 0 (sCM); "end", "length": a flow map
            of two times (AYF).
        sigma_max: noise where sampling starts, over the scale of the data: t ends at
            arctan(sigma_max / sigma_data).
        dtype: dtype of the network's input; None is that of x.

    Raises:
        TypeError: net cannot be called, or takes no two times.
        ValueError: sigma_data is not positive, sigma_max not above 0.002.

    Source: Lu & Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models"
        (2025), section 3; Sabour et al., "Align Your Flow" (2025), for two times.
    """

    def __init__(
        self,
        net: Network,
        sigma_data: float = 0.5,
        *,
        c_noise: Callable[[Scalar], Scalar] | None = None,
        second: Second = None,
        sigma_max: float = 80.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        scale = check.positive("sigma_data", sigma_data)
        path = in_coordinates("coordinates", TrigFlow(scale, sigma_max=sigma_max))
        handed = _itself if c_noise is None else check.function("c_noise", c_noise)
        super().__init__(net, path, handed, second, dtype)
        self.sigma_data = scale

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.sigma_data,)

    def skip_out(self, t: Scalar, s: Scalar) -> Pair:
        of = maths(t - s)
        return of.cos(t - s), -self.sigma_data * of.sin(t - s)

    def start_rates(self, t: Scalar, s: Scalar) -> Pair:
        of = maths(t - s)
        return -of.sin(t - s), -self.sigma_data * of.cos(t - s)

    def end_rates(self, t: Scalar, s: Scalar) -> Pair:
        of = maths(t - s)
        return of.sin(t - s), self.sigma_data * of.cos(t - s)

    def c_in(self, t: Scalar) -> Scalar:
        return 1.0 / self.sigma_data


class TrajectoryFunction(FlowMap):
    """f = (s / t) x + (1 - s / t) g(x, t, s), g = c_skip x + c_out F with EDM's scalings of t.

    In Karras coordinates; at s = t the function g is the denoiser.

    Args:
        net: `net(c_in x, c_noise(t), c_noise(s), **extra_args) -> F`.
        sigma_data: standard deviation of the data, positive.
        sigma_min: levels below it are told to the network as this one; positive.
        c_noise: "edm" 0.25 ln sigma, "published" 250 ln sigma, "sigma", or a callable.
        dtype: dtype of the network's input; None is that of x.

    Raises:
        TypeError: net cannot be called, or takes no two times.
        ValueError: a number that is not positive, an unknown name.

    Source: Kim et al., "Consistency Trajectory Models" (2024), eq. 4 and appendix C.
    """

    def __init__(
        self,
        net: Network,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        *,
        c_noise: NoiseInput = "edm",
        dtype: torch.dtype | None = None,
    ) -> None:
        scale = check.positive("sigma_data", sigma_data)
        least = check.positive("sigma_min", sigma_min)
        handed = partial(_at_least, least, noise_input("c_noise", c_noise))
        super().__init__(net, KARRAS, handed, "end", dtype)
        self.sigma_data, self.sigma_min = scale, least

    @property
    def numbers(self) -> tuple[float, ...]:
        return self.sigma_data, self.sigma_min

    def skip_out(self, t: Scalar, s: Scalar) -> Pair:
        kept = _share(s, t)
        c_skip, c_out = edm_output(t, self.sigma_data)
        return kept + (1.0 - kept) * c_skip, (1.0 - kept) * c_out

    def start_rates(self, t: Scalar, s: Scalar) -> Pair:
        kept, variance = _share(s, t), self.sigma_data**2
        spread = t * t + variance
        root = maths(spread).sqrt(spread)
        skip_rate = -2.0 * t * variance / (spread * spread)
        out_rate = self.sigma_data * variance / (spread * root)
        return (
            -kept * t / spread + (1.0 - kept) * skip_rate,
            kept * self.sigma_data / root + (1.0 - kept) * out_rate,
        )

    def end_rates(self, t: Scalar, s: Scalar) -> Pair:
        spread = t * t + self.sigma_data**2
        return t / spread, -self.sigma_data / maths(spread).sqrt(spread)

    def c_in(self, t: Scalar) -> Scalar:
        return edm_input(t, self.sigma_data)


def _itself(level: Scalar) -> Scalar:
    return level


def _share(s: Scalar, t: Scalar) -> Scalar:
    """s / t; 1 at t = 0, where the map is the identity."""
    if isinstance(t, Tensor):
        return torch.where(t == 0.0, 1.0, s / torch.where(t == 0.0, 1.0, t))
    if isinstance(s, Tensor):
        return torch.ones_like(s) if t == 0.0 else s / t
    return 1.0 if t == 0.0 else s / t


def _at_least(least: float, c_noise: Callable[[Scalar], Scalar], level: Scalar) -> Scalar:
    return c_noise(level.clamp_min(least) if isinstance(level, Tensor) else max(level, least))
