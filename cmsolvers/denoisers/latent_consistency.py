"""Consistency functions around the networks of a DDPM chain, as latent consistency models are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.preconditioning import Network, Preconditioned
from cmsolvers.denoisers.protocol import Scalar
from cmsolvers.denoisers.scalings import InProcess, Row
from cmsolvers.processes import DDPM
from cmsolvers.processes.elementary import maths

Output = Literal["eps", "v", "x0"]
FACTORS = ("paper", "without sigma_data")


@dataclass(frozen=True)
class LatentConsistencyScalings:
    """f = c_skip(t) x_t + c_out(t) x_0(x_t, t), t a time of the chain, in Karras coordinates.

    Args:
        inner: of the network, D in Karras coordinates.
        sigma_data: sd, positive.
        time_scale: tau, positive.
        factor: of c_out: sd, or 1.
    """

    inner: InProcess
    sigma_data: float
    time_scale: float
    factor: float

    def __call__(self, level: Scalar) -> Row:
        """The row at a level sigma / alpha."""
        skip, out, alpha, handed = self.inner(level)
        t: Scalar = self.inner.process.t_of_sigma(level)
        time = self.time_scale * (t.clamp_min(0.0) if isinstance(t, Tensor) else max(t, 0.0))
        square = time * time + self.sigma_data**2
        c_skip = self.sigma_data**2 / square
        c_out = self.factor * time / maths(square).sqrt(square)
        return c_skip * alpha + c_out * skip, c_out * out, alpha, handed


class LatentConsistencyFunction(Preconditioned):
    """f = c_skip(t) x_t + c_out(t) x_0, with x_0 from a network of eps, v or x_0 on a chain.

    c_skip = sd^2 / ((tau t)^2 + sd^2), c_out = sd tau t / sqrt((tau t)^2 + sd^2): at t = 0, the
    first step of the chain, f is x_t whatever the network says. In Karras coordinates, so states
    are x_t / alpha and levels sigma / alpha: `process.sigmas[t]`.

    Args:
        net: `net(x_t, t, **extra_args)`, x_t in the chain's own scaling, t of shape [B].
        process: the chain it was trained on.
        output: what the network predicts: "eps", "v" or "x0".
        sigma_data: sd, positive.
        time_scale: tau, positive.
        scalings: "paper": c_out as above, which is nearly sd; "without sigma_data": c_out has no
            factor sd and is nearly 1, so that f begins as the x_0 of the network. Widely used
            checkpoints and libraries are so.
        dtype: dtype of the network's input; None is that of x.
        time_dtype: torch.int64 or torch.int32 for a network that looks its time up in a table.

    Raises:
        TypeError: net cannot be called, process is no `DDPM`, a dtype that does not fit.
        ValueError: a number that is not positive, an unknown name.

    Source: Luo et al., "Latent Consistency Models" (2023), eq. 9 and published code.
    """

    def __init__(
        self,
        net: Network,
        process: DDPM,
        *,
        output: Output = "eps",
        sigma_data: float = 0.5,
        time_scale: float = 10.0,
        scalings: str = "paper",
        dtype: torch.dtype | None = None,
        time_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(process, DDPM):
            raise TypeError(f"process must be a DDPM; got {check.describe(process)}")
        check.choice("output", output, ("eps", "v", "x0"))
        sd, scale = (
            check.positive("sigma_data", sigma_data),
            check.positive("time_scale", time_scale),
        )
        factor = sd if check.choice("scalings", scalings, FACTORS) == "paper" else 1.0
        told = process.nearest_time if time_dtype is not None else None
        row = LatentConsistencyScalings(InProcess(process, output, told), sd, scale, factor)
        super().__init__(net, row, dtype=dtype, time_dtype=time_dtype)
        self.process, self.sigma_data = process, sd
