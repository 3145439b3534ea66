"""Coordinates of states and levels: Karras ones, those of the rectified flow, those of a process.

A state is x = alpha x_0 + sigma z, and a level says where on this path it is. In Karras coordinates
alpha is 1 and the level is sigma; in flow coordinates alpha is 1 - t, sigma is t and so is the
level. Whoever runs a denoiser obeys the coordinates that it names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.processes.continuous import Karras
from cmsolvers.processes.elementary import Time, broadcastable, exact, maths, ratio
from cmsolvers.processes.flows import RectifiedFlow, TrigFlow
from cmsolvers.processes.sde import Process
from cmsolvers.processes.wrappers import layers


@dataclass(frozen=True)
class Coordinates:
    """The path of a process, as samplers read it; a level is a time of the process.

    Args:
        process: whose alpha and sigma these are.

    Attributes:
        karras: whether a level is the standard deviation of the noise, and the data is not scaled.
        straight: whether alpha and sigma are linear in the level. Then dx/dlevel =
            (x - D) / level, and a step of Euler's method is exact for constant D.
        is_builtin: whether the process is the library's: others may compare as they like.

    Raises:
        ValueError: a process whose states at time 0 are not clean data, such as a `DDPM`.
    """

    process: Process
    # No cached properties: their lock stops torch.compile.
    karras: bool = field(init=False, compare=False)
    straight: bool = field(init=False, compare=False)
    is_builtin: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        sigma, alpha = self.process.sigma(0.0), self.process.alpha(0.0)
        if not (sigma == 0.0 and alpha == 1.0):
            raise ValueError(
                "coordinates must be those of a process whose states at time 0 are clean data; "
                f"got {self.process!r}, which has alpha = {alpha:g} and sigma = {sigma:g} there"
            )
        kind = type(self.process)
        object.__setattr__(self, "karras", kind is Karras)
        object.__setattr__(self, "straight", kind in (Karras, RectifiedFlow))
        object.__setattr__(self, "is_builtin", kind.__module__.startswith("cmsolvers."))

    @property
    def max_level(self) -> float:
        """The largest level."""
        if self.karras:
            return math.inf
        return 1.0 if self.straight else self.process.t_max

    def alpha(self, level: Time) -> Time:
        """Scale of the data."""
        found: Time = _like(level, self.process.alpha(level))
        return found

    def sigma(self, level: Time) -> Time:
        """Standard deviation of the noise."""
        found: Time = _like(level, self.process.sigma(level))
        return found

    def ratio(self, level: Time) -> Time:
        """Sigma / alpha, the level in Karras coordinates; infinite where no data is left."""
        found: Time = level if self.karras else _like(level, self.process.sigma_hat(level))
        return found

    def level(self, ratio: Time) -> Time:
        """The level at which sigma / alpha is `ratio`; its inverse."""
        found: Time = ratio if self.karras else _like(ratio, self.process.t_of_sigma(ratio))
        return found

    def slope(self, x: Any, d: Any, level: Any) -> Any:
        """dx/dlevel along the probability-flow ODE, where D is d; of forms and of tensors."""
        if self.straight:
            return (x - d) / level
        rate, gain = self._rates(level)
        return rate * x + gain * d

    def clean(self, x: Any, slope: Any, level: Any) -> Any:
        """D, where the slope at x is `slope`: the inverse of `slope`."""
        if self.straight:
            return x - level * slope
        rate, gain = self._rates(level)
        return 1.0 / gain * (slope - rate * x)

    def _rates(self, level: Time) -> tuple[Time, Time]:
        """(a, b): dx/dlevel = a x + b D."""
        a, g = self.process.drift_factor(level), self.process.diffusion(level)
        half = 0.5 * (g / self.process.sigma(level)) ** 2
        rates: tuple[Time, Time] = (
            _like(level, a + half),
            _like(level, -half * self.process.alpha(level)),
        )
        return rates

    def pair_rates(self, level: Time) -> tuple[Time, Time]:
        """(alpha', sigma'), the derivatives in the level: a sample moves by alpha' x_0 + sigma' z.

        At level 0 sigma' may be infinite, as it is for VP.
        """
        if self.straight:
            one = level * 0 + 1.0
            return (one - 1.0 if self.karras else -one), one
        if isinstance(self.process, TrigFlow):
            level = exact(level)
            of = maths(level)
            return -of.sin(level), self.process.sigma_data * of.cos(level)
        a, g = self.process.drift_factor(level), self.process.diffusion(level)
        sigma = self.process.sigma(level)
        rates: tuple[Time, Time] = (
            _like(level, a * self.process.alpha(level)),
            _like(level, a * sigma + ratio(0.5 * g * g, sigma)),
        )
        return rates

    def ddim_weights(self, level: float, to: float) -> tuple[float, float]:
        """Weights of x and of constant D in the state at another level."""
        kept = self.sigma(to) / self.sigma(level)
        if self.straight:
            return kept, (level - to) / level
        return kept, self.alpha(to) * (1.0 - self.ratio(to) / self.ratio(level))

    def noised_to(self, low: float, high: float) -> tuple[float, float]:
        """Weights of x and of unit noise in the state that noise lifts to a higher level."""
        if self.ratio(high) == math.inf:
            return 0.0, self.sigma(high)
        a, b = self.ratio(low), self.ratio(high)
        kept = 1.0 if self.karras else self.alpha(high) / self.alpha(low)
        # sqrt(b^2 - a^2) without the cancellation
        return kept, self.alpha(high) * math.sqrt((b - a) * (b + a))

    def check_levels(self, name: str, levels: Sequence[float], kind: str = "denoiser") -> None:
        """ValueError for levels of a kind of model that are no times of the process."""
        largest = max(levels)
        if largest > self.max_level * (1.0 + 2.0**-23):  # which float32 may round up to
            at = f" at index {levels.index(largest)}" if len(levels) > 1 else ""
            raise ValueError(
                f"{name} must lie in [0, {self.max_level:g}] for a {kind} in {self}; got "
                f"{largest:g}{at}"
            )

    def __str__(self) -> str:
        if self.karras:
            return "Karras coordinates"
        name = type(self.process).__name__
        return "flow coordinates" if name == "RectifiedFlow" else f"the coordinates of {name}"


def _like(given: object, found: Any) -> Any:
    """What a function of time gave, a float for a float: a user's may give a tensor []."""
    return found if isinstance(given, Tensor) else float(found)


KARRAS = Coordinates(Karras())
FLOW = Coordinates(RectifiedFlow())
_NAMED = {"karras": KARRAS, "flow": FLOW}


def coordinates(name: str, value: object) -> Coordinates:
    """Coordinates from "karras", "flow", a `Process` or themselves.

    Raises:
        TypeError: something else.
        ValueError: an unknown string, or a process that ends in no clean data.
    """
    if isinstance(value, Coordinates):
        return value
    if isinstance(value, str):
        return _NAMED[check.choice(name, value, tuple(_NAMED))]
    if not isinstance(value, Process):
        raise TypeError(
            f'{name} must be "karras", "flow" or a Process; got {check.describe(value)}'
        )
    for known in (KARRAS, FLOW):
        if type(value) is type(known.process):
            return known
    return Coordinates(value)


def coordinates_of(denoiser: object) -> Coordinates:
    """The coordinates that a denoiser names in its attribute `coordinates`, Karras ones by default.

    What wraps a denoiser without a name of its own (`functools.partial`, `DataParallel` and its
    like, a compiled module) has those of the denoiser. A tensor of this name means something else.

    Raises:
        TypeError, ValueError: as `coordinates`.
    """
    own = getattr(denoiser, "coordinates", None)
    if isinstance(own, Coordinates):
        return own
    for layer in layers(denoiser, partials=True):
        named = getattr(layer, "coordinates", None)
        if named is not None and not isinstance(named, Tensor):
            return coordinates("coordinates of a model", named)
    return KARRAS


def require_karras(name: str, model: object) -> None:
    """ValueError for a model in other coordinates."""
    path = coordinates_of(model)
    if not path.karras:
        raise ValueError(f"{name} must be in Karras coordinates; got one in {path}")


def in_karras(denoiser: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The denoiser as one in Karras coordinates: D(x / alpha, sigma / alpha, **extra_args)."""
    path = coordinates_of(denoiser)
    if path.karras:
        return denoiser

    def moved(x: Tensor, sigma: float | Tensor, **extra_args: Any) -> Tensor:
        level: Any = path.level(exact(sigma))
        scale = broadcastable(path.alpha(level), x)
        if isinstance(level, Tensor):  # half precision would round what the network is told
            level = level.to(torch.promote_types(x.dtype, torch.float32))
        return denoiser(scale * x, level, **extra_args)

    return moved
