"""Flow maps f_{t->s}: where the probability-flow ODE carries a state from level t to level s.

Every one is `f = a(t, s) x + b(t, s) F(c_in(t) x, c_noise(t)[, c_noise(s)])` around a network, with
coefficients in float64, a(t, t) = 1 and b(t, t) = 0: at s = t it is the identity whatever the
network says. s = 0 is a consistency function, and the derivative in s at s = t is the velocity of
the ODE, so a map of two times is a flow model too.

Source: Boffi et al., "Flow Map Matching" (2024), section 2; Kim et al., "Consistency Trajectory
Models" (2024), section 3.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.denoisers.preconditioning import Network, NoiseInput, noise_input, training_mode
from cmsolvers.denoisers.protocol import Scalar
from cmsolvers.denoisers.second_time import SecondTime
from cmsolvers.ops.rules import edm_input, edm_output
from cmsolvers.processes.coordinates import FLOW, KARRAS, Coordinates
from cmsolvers.processes.coordinates import coordinates as in_coordinates
from cmsolvers.processes.elementary import broadcastable, maths
from cmsolvers.processes.flows import TrigFlow
from cmsolvers.processes.sde import Process

Pair: TypeAlias = tuple[Scalar, Scalar]
Second: TypeAlias = "Literal['end', 'length'] | SecondTime | None"
"""What the network gets as its second time: c_noise(s), t - s, a function of both, or none."""


class FlowMap(nn.Module, ABC):
    """A flow map `f(x, t, s, **extra_args)` around a network; a module, as `Preconditioned` is.

    Args:
        net: `net(x_in, c_noise(t), c_noise(s), **extra_args) -> F` with x_in of the shape of x and
            times of shape [B]; without the second time where `second` is None.
        coordinates: of states and levels.
        c_noise: what the network gets for a level, a callable of floats and of float64 tensors.
        second: "end": the second time is c_noise(s); "length": it is t - s; a callable such as
            `step_index(128)`: what it makes of (t, s); None: the network has one time, and the map
            always ends at s = 0.
        dtype: dtype of the network's input; None is that of x.

    Raises:
        TypeError: net cannot be called, or takes no second time where there is one.
        ValueError: an unknown `second`.
    """

    def __init__(
        self,
        net: Network,
        coordinates: Coordinates,
        c_noise: Callable[[Scalar], Scalar],
        second: Second = "end",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.net: Network = check.function("net", net)
        self.coordinates = coordinates
        self.c_noise = c_noise
        if second not in ("end", "length", None) and not callable(second):
            raise ValueError(f'second must be "end", "length", a callable or None; got {second!r}')
        self.second: Second = second
        if dtype is not None and dtype not in check.STATE_DTYPES:
            raise TypeError(f"dtype must be None or a floating dtype; got {dtype}")
        self.dtype = dtype
        if second is not None:
            _takes_two_times(net)
        self.training = training_mode(net)

    @abstractmethod
    def skip_out(self, t: Scalar, s: Scalar) -> Pair:
        """(a, b) of f = a x + b F."""

    @abstractmethod
    def start_rates(self, t: Scalar, s: Scalar) -> Pair:
        """Derivatives of (a, b) in t."""

    @abstractmethod
    def end_rates(self, t: Scalar, s: Scalar) -> Pair:
        """Derivatives of (a, b) in s; at s = t they are the weights of the velocity."""

    def c_in(self, t: Scalar) -> Scalar:
        """The factor of x in the network's input."""
        return 1.0

    def network(self, x_in: Tensor, t: Tensor, s: Tensor | None, **extra_args: Any) -> Tensor:
        """F for a scaled input and float64 levels [B].

        Times reach the network in float32, or in float64 where the input is that.
        """
        dtype = torch.float64 if x_in.dtype is torch.float64 else torch.float32
        times = [self.c_noise(t).to(dtype)]
        if self.second is not None:
            times.append(self._second(t, t if s is None else s).to(dtype))
        net = self._modules.get("net")
        made: Tensor = (self.net if net is None else net)(x_in, *times, **extra_args)
        return made

    def _second(self, t: Tensor, s: Tensor) -> Tensor:
        if callable(self.second):
            return self.second(t, s)
        found: Tensor = self.c_noise(s) if self.second == "end" else t - s
        return found

    def raw(self, x: Tensor, t: Tensor, s: Tensor | None, **extra_args: Any) -> Tensor:
        """F for a state and float64 levels [B], in plain torch: differentiable in all of them."""
        x_in = (x * broadcastable(self.c_in(t), x)).to(self.dtype or x.dtype)
        return self.network(x_in, t, s, **extra_args)

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Tensor,
            t: float | Tensor,
            s: float | Tensor = 0.0,
            *,
            output: str = "map",
            **extra_args: Any,
        ) -> Tensor:
            """As `forward`, with the hooks of a module."""

    def forward(
        self,
        x: Tensor,
        t: float | Tensor,
        s: float | Tensor = 0.0,
        *,
        output: str = "map",
        **extra_args: Any,
    ) -> Tensor:
        """The state at level s of the trajectory through x at level t.

        Args:
            x: [B, ...] in `coordinates`.
            t: where x is, a number or a tensor of shape [] or [B].
            s: where to go, likewise; 0 is clean data. Either direction.
            output: "map": f; "raw": F, for losses that call this through a wrapper.
            extra_args: handed to the network.

        Returns:
            Tensor like x.

        Raises:
            TypeError: arguments of the wrong kind.
            ValueError: wrong shapes, levels outside the path, or s other than 0 where the network
                has one time.
        """
        start, end = self._levels("t", t, x), self._levels("s", s, x)
        if self.second is None and not (isinstance(s, Tensor) or s == 0):
            raise ValueError(f"s must be 0 for a network of one time; got {s:g}")
        made = check.model_output("net", self.raw(x, start, end, **extra_args), x)
        if check.choice("output", output, ("map", "raw")) == "raw":
            return made
        return ops.weighted_step(x, (made,), self.skip_out(start, end))

    def velocity(self, x: Tensor, t: float | Tensor, **extra_args: Any) -> Tensor:
        """dx/dlevel of the ODE at (x, t), from the map's diagonal s = t; [B, ...].

        Raises:
            TypeError, ValueError: as `forward`; a network of one time, which has no diagonal.
        """
        if self.second is None:
            raise ValueError("a flow map of one time has no velocity: its end is always 0")
        level = self._levels("t", t, x)
        made = check.model_output("net", self.raw(x, level, level, **extra_args), x)
        return ops.weighted_step(x, (made,), self.end_rates(level, level))

    def _levels(self, name: str, value: float | Tensor, x: Tensor) -> Tensor:
        """Levels of the path, float64 [B]."""
        level = check.level(name, value, check.state("x", x), zero=True)
        if isinstance(level, Tensor):
            return level.double().expand(x.shape[0])
        self.coordinates.check_levels(name, (level,))
        return torch.full((x.shape[0],), level, dtype=torch.float64, device=x.device)


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
        self_data = check.positive("sigma_data", sigma_data)
        path = in_coordinates("coordinates", TrigFlow(self_data, sigma_max=sigma_max))
        handed = _itself if c_noise is None else check.function("c_noise", c_noise)
        super().__init__(net, path, handed, second, dtype)
        self.sigma_data = self_data

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
        self_data, least = (
            check.positive("sigma_data", sigma_data),
            check.positive("sigma_min", sigma_min),
        )
        handed = noise_input("c_noise", c_noise)

        def told(level: Scalar) -> Scalar:
            above = level.clamp_min(least) if isinstance(level, Tensor) else max(level, least)
            return handed(above)

        super().__init__(net, KARRAS, told, "end", dtype)
        self.sigma_data, self.sigma_min = self_data, least

    def skip_out(self, t: Scalar, s: Scalar) -> Pair:
        kept = s / t
        c_skip, c_out = edm_output(t, self.sigma_data)
        return kept + (1.0 - kept) * c_skip, (1.0 - kept) * c_out

    def start_rates(self, t: Scalar, s: Scalar) -> Pair:
        kept, variance = s / t, self.sigma_data**2
        c_skip, c_out = edm_output(t, self.sigma_data)
        spread = t * t + variance
        skip_rate = -2.0 * t * variance / (spread * spread)
        out_rate = self.sigma_data * variance / (spread * maths(spread).sqrt(spread))
        return (
            (c_skip - 1.0) * kept / t + (1.0 - kept) * skip_rate,
            c_out * kept / t + (1.0 - kept) * out_rate,
        )

    def end_rates(self, t: Scalar, s: Scalar) -> Pair:
        c_skip, c_out = edm_output(t, self.sigma_data)
        return (1.0 - c_skip) / t, -c_out / t

    def c_in(self, t: Scalar) -> Scalar:
        return edm_input(t, self.sigma_data)


def _itself(level: Scalar) -> Scalar:
    return level


def _takes_two_times(net: Network) -> None:
    """TypeError for a network whose signature has no place for a second time."""
    called = net.forward if isinstance(net, nn.Module) else net
    try:
        parameters = inspect.signature(cast("Callable[..., object]", called)).parameters.values()
    except (TypeError, ValueError):
        return
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) < 3 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise TypeError(
            "net must take two times, net(x, c_noise, c_noise_end, **extra_args); "
            f"{type(net).__name__} takes {', '.join(p.name for p in places)}"
        )
