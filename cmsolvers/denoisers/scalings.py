"""Scalings of every kind of network: level -> (c_skip, c_out, c_in, what the network is handed).

D = c_skip x + c_out F(c_in x, ...) in Karras coordinates, or in those of a process, for a float as
well as for a float64 tensor of levels. `denoisers` reads them from F to D, `conversions` from D to
F.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cmsolvers import ops
from cmsolvers.denoisers.protocol import Scalar
from cmsolvers.ops.rules import consistency, edm_input, edm_output, held
from cmsolvers.processes.coordinates import KARRAS, Coordinates
from cmsolvers.processes.coordinates import coordinates as in_coordinates
from cmsolvers.processes.ddpm import DDPM
from cmsolvers.processes.flows import RectifiedFlow
from cmsolvers.processes.sde import Process

Row: TypeAlias = tuple[Scalar, Scalar, Scalar, Scalar]
Target: TypeAlias = Literal["eps", "v", "x0", "score", "flow"]


@dataclass(frozen=True)
class InProcess:
    """A network trained on x_t = alpha x_0 + sigma z and the time t of a process.

    Args:
        process: whose coordinates and time these are.
        target: what the network predicts.
        c_noise: of the level, handed to the network instead of t.
        own: whether states and levels are those of the process, not Karras ones.

    Attributes:
        coordinates: of states and levels.
    """

    process: Process
    target: Target
    c_noise: Callable[[Scalar], Scalar] | None = None
    own: bool = False
    coordinates: Coordinates = field(init=False, compare=False)

    def __post_init__(self) -> None:
        found = in_coordinates("process", self.process) if self.own else KARRAS
        object.__setattr__(self, "coordinates", found)

    def __call__(self, level: Scalar) -> Row:
        """The row at a level."""
        if self.own:
            return self._in_own(level)
        t = self.process.t_of_sigma(level)
        alpha = self.process.alpha(t)
        return (*self._pair(level, t, alpha), alpha, self._handed(level, t))

    def _in_own(self, t: Scalar) -> Row:
        """The row in the coordinates of the process: the network reads the state as it is."""
        if not isinstance(t, Tensor):
            self.coordinates.check_levels("t", (t,))
        handed = t if self.c_noise is None else self.c_noise(t)
        if self.target == "x0":
            return 0.0, 1.0, 1.0, handed
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        if self.target in ("eps", "score"):
            if not isinstance(alpha, Tensor) and alpha == 0.0:
                raise ValueError(
                    f"t must leave some of the data for a network of {self.target}; got {t:g}, "
                    "where x is noise alone (from_flow and from_v are for such levels)"
                )
            gain = -sigma if self.target == "eps" else sigma * sigma
            return 1.0 / alpha, gain / alpha, 1.0, handed
        if self.target == "v":
            square = alpha * alpha + sigma * sigma
            return alpha / square, -sigma / square, 1.0, handed
        if type(self.process) is RectifiedFlow:
            return 1.0, -t, 1.0, handed
        growth = 0.5 * (self.process.diffusion(t) / sigma) ** 2
        skip = (1.0 + self.process.drift_factor(t) / growth) / alpha
        return skip, -1.0 / (alpha * growth), 1.0, handed

    def _pair(self, level: Scalar, t: Scalar, alpha: Scalar) -> tuple[Scalar, Scalar]:
        if self.target == "eps":
            return 1.0, -level
        if self.target == "x0":
            return 0.0, 1.0
        sigma = alpha * level
        if self.target == "score":
            return 1.0, sigma * level
        if self.target == "v":
            square = 1.0 + level * level
            return 1.0 / square, -level / (alpha * square)
        # The velocity alpha' x_0 + sigma' z, with alpha' = a alpha and 2 sigma sigma' = g^2 + 2 a
        # sigma^2; what is left of x_0 in the end is the growth of ln sigma_hat, g^2 / (2 sigma^2).
        # All of one t: c_skip is a small difference at large levels, where t is rounded.
        growth = 0.5 * (self.process.diffusion(t) / self.process.sigma(t)) ** 2
        return 1.0 + self.process.drift_factor(t) / growth, -1.0 / (alpha * growth)

    def _handed(self, level: Scalar, t: Scalar) -> Scalar:
        if self.c_noise is not None:
            return self.c_noise(level)
        if type(self.process) is not DDPM:
            return self.process.network_time(level) if isinstance(self.process, DDPM) else t
        # `network_time`, without asking for t once more
        end = self.process.num_steps - 1.0
        return t.clamp(0.0, end) if isinstance(t, Tensor) else min(max(t, 0.0), end)


class EDMScalings:
    """EDM's scalings, and the steps that make them of the levels.

    c_skip = sd^2 / (s^2 + sd^2), c_out = s sd / sqrt(s^2 + sd^2), c_in = 1 / sqrt(s^2 + sd^2)
    (Karras et al. 2022, table 1).

    Args:
        sigma_data: standard deviation of the data.
        c_noise: of the level.
        sign: of c_out: 1 for EDM, -1 for TrigFlow, whose F is EDM's with the other sign.
    """

    coordinates = KARRAS

    def __init__(
        self, sigma_data: float, c_noise: Callable[[Scalar], Scalar], sign: float = 1.0
    ) -> None:
        self.sigma_data, self.c_noise, self.sign = sigma_data, c_noise, sign

    def __call__(self, level: Scalar) -> Row:
        """The row at a level."""
        c_skip, c_out = edm_output(level, self.sigma_data)
        return c_skip, self.sign * c_out, edm_input(level, self.sigma_data), self.c_noise(level)

    @property
    def parts(self) -> tuple[object, ...]:
        """What the row depends on, the level aside."""
        return type(self), self.sigma_data, self.c_noise, self.sign

    def pair_rows(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of two states, of their inputs and of D at both: `ops.consistency_rows`."""
        return ops.consistency_rows(high, low, self.sigma_data, 0.0)

    def pair_inputs(self, high: Tensor, low: Tensor, noise_factor: float) -> tuple[Tensor, ...]:
        """The same for their inputs alone: `ops.consistency_inputs`."""
        return ops.consistency_inputs(high, low, self.sigma_data, 0.0, noise_factor)

    def scaled_input(self, x: Tensor, sigma: float | Tensor, dtype: torch.dtype | None) -> Tensor:
        """c_in x in one launch; a level, or levels of shape [] or [B]."""
        return ops.edm_input(x, sigma, self.sigma_data, dtype=dtype)

    def output(self, x: Tensor, f: Tensor, sigma: float | Tensor) -> Tensor:
        """c_skip x + c_out F in one launch."""
        return ops.edm_output(x, f, sigma, self.sigma_data)


class ConsistencyScalings(EDMScalings):
    """EDM's with the boundary at sigma_min: c_skip = 1 and c_out = 0 there, exactly.

    Args:
        sigma_data: standard deviation of the data.
        sigma_min: the level where the function is the identity, and so it is where a level is
            sigma_min rounded to float32, float16 or bfloat16.
        c_noise: of the level.
    """

    def __init__(
        self, sigma_data: float, sigma_min: float, c_noise: Callable[[Scalar], Scalar]
    ) -> None:
        super().__init__(sigma_data, c_noise)
        self.sigma_min = sigma_min
        self._held = held(sigma_min)

    def __call__(self, level: Scalar) -> Row:
        """The row at a level."""
        c_skip, c_out, root = consistency(level, self.sigma_data, self.sigma_min, self._held)
        return c_skip, c_out, 1.0 / root, self.c_noise(level)

    @property
    def parts(self) -> tuple[object, ...]:
        """What the row depends on, the level aside."""
        return (*super().parts, self.sigma_min)

    def pair_rows(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of two states, of their inputs and of f at both: `ops.consistency_rows`."""
        return ops.consistency_rows(high, low, self.sigma_data, self.sigma_min)

    def pair_inputs(self, high: Tensor, low: Tensor, noise_factor: float) -> tuple[Tensor, ...]:
        """The same for their inputs alone: `ops.consistency_inputs`."""
        return ops.consistency_inputs(high, low, self.sigma_data, self.sigma_min, noise_factor)

    def output(self, x: Tensor, f: Tensor, sigma: float | Tensor) -> Tensor:
        """c_skip x + c_out F in one launch, with the boundary."""
        return ops.consistency_output(
            x, f, sigma, sigma_data=self.sigma_data, sigma_min=self.sigma_min
        )
