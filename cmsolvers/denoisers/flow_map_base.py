"""What every flow map f_{t->s} is: where the probability-flow ODE carries a state from t to s.

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
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.denoisers.preconditioning import (
    Network,
    Preconditioned,
    as_written,
    training_mode,
)
from cmsolvers.denoisers.protocol import Scalar
from cmsolvers.denoisers.second_time import SecondTime
from cmsolvers.denoisers.signature import CALLED, signature_of
from cmsolvers.processes.coordinates import Coordinates
from cmsolvers.processes.elementary import broadcastable
from cmsolvers.processes.wrappers import wrapped_in

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
            require_two_times("net", net)
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
        dtype = time_dtype(x_in.dtype)
        levels = self.times(t, t if s is None else s)
        # Copies: a time may be the level itself, and networks may write to what they get.
        told = (cast(Tensor, time).to(dtype, copy=True) for time in levels)
        net = self._modules.get("net")
        made: Tensor = (self.net if net is None else net)(x_in, *told, **extra_args)
        return made

    def times(self, t: Scalar, s: Scalar) -> tuple[Scalar, ...]:
        """What the network is told of the levels: one time, or two."""
        if self.second is None:
            return (self.c_noise(t),)
        if callable(self.second):
            return self.c_noise(t), self.second(t, s)
        return self.c_noise(t), self.c_noise(s) if self.second == "end" else t - s

    @property
    def kind(self) -> str:
        """What errors call it."""
        return "consistency function" if self.second is None else "flow map"

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the coefficients depend on besides the coordinates."""
        return ()

    @property
    def signature(self) -> Hashable | None:
        """What a run settles on the host about it; see `Preconditioned.signature`."""
        if not folds_map(self):
            return CALLED
        if any(name in vars(self) for name in ("skip_out", "c_in", "times")):
            return None
        return signature_of(type(self), *self.numbers, self.c_noise, self.second, self.dtype)

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
        self.coordinates.check_levels(name, (level,), self.kind)
        return torch.full((x.shape[0],), level, dtype=torch.float64, device=x.device)


def time_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the times that go with a state: float64, or float32, where t - s keeps digits."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def folds_map(model: object) -> TypeGuard[FlowMap]:
    """Whether a sampler may call the network of a flow map and do the rest of f itself.

    A subclass with a call of its own, and a module with hooks, mean these to run.
    """
    return (
        isinstance(model, FlowMap)
        and as_written(model, FlowMap.forward)
        and type(model).raw is FlowMap.raw
        and type(model).network is FlowMap.network
        and not {"raw", "network"} & vars(model).keys()
    )


def end_of(model: object) -> float | None:
    """The level where a function of one time ends; None for a map of two times.

    0 for a `FlowMap` of one time, sigma_min for a `ConsistencyFunction`; also inside of denoisers
    made of it and of wrappers for many devices or a compiler. Other callables count as maps of two.
    """
    for _ in range(8):
        if isinstance(model, FlowMap):
            return 0.0 if model.second is None else None
        if isinstance(model, Preconditioned):
            return model.sigma_min
        sides = getattr(model, "sides", None)
        inner = [getattr(model, "inner", None), wrapped_in(model, partials=True)]
        inner.append(sides[0] if isinstance(sides, (list, tuple, nn.ModuleList)) else None)
        model = next((found for found in inner if callable(found)), None)
    return None


def kind_of(model: object, otherwise: str) -> str:
    """What errors call a model: `otherwise` where its type, inside of wrappers, does not say it."""
    for _ in range(4):
        if isinstance(model, (FlowMap, Preconditioned)):
            return model.kind
        inner = (getattr(model, name, None) for name in ("func", "module", "_orig_mod"))
        model = next((found for found in inner if callable(found)), None)
    return otherwise


def require_two_times(name: str, called: Callable[..., object]) -> None:
    """TypeError for a callable whose signature has no place for a second time."""
    places = _places(called)
    if places is not None and len(places) < 3:
        raise TypeError(
            f"{name} must take two times, {name}(x, t, s, **extra_args); "
            f"{type(called).__name__} takes {', '.join(places)}"
        )


def _places(called: Callable[..., object]) -> list[str] | None:
    """Names of the positional parameters; None where there may be any."""
    found = called.forward if isinstance(called, nn.Module) else called
    try:
        parameters = inspect.signature(cast("Callable[..., object]", found)).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
