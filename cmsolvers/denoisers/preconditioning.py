"""Preconditioning: D = c_skip x + c_out F(c_in x, c_noise), coefficients in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.processes.elementary import broadcastable as per_sample
from cmsolvers.processes.elementary import exact, maths

Network: TypeAlias = Callable[..., Tensor]
NoiseInput: TypeAlias = str | Callable[[Any], Any] | None


class Coefficients(NamedTuple):
    """Preconditioning at one level: floats for a float level, float64 tensors for a tensor."""

    c_skip: Any
    c_out: Any
    c_in: Any
    c_noise: Any


def edm_noise(sigma: Any) -> Any:
    """0.25 ln sigma: c_noise of EDM."""
    return 0.25 * maths(sigma).log(sigma)


def published_noise(sigma: Any) -> Any:
    """250 ln sigma: c_noise of the published consistency checkpoints."""
    return 250.0 * maths(sigma).log(sigma)


def identity_noise(sigma: Any) -> Any:
    """Sigma itself."""
    return sigma


_NOISE_INPUTS = {"edm": edm_noise, "published": published_noise, "sigma": identity_noise}


def noise_input(name: str, value: NoiseInput) -> Callable[[Any], Any]:
    """What the network gets for sigma, from a name or a callable."""
    if isinstance(value, str):
        if value not in _NOISE_INPUTS:
            known = ", ".join(repr(key) for key in _NOISE_INPUTS)
            raise ValueError(f"{name} must be {known} or a callable; got {value!r}")
        return _NOISE_INPUTS[value]
    return check.function(name, value)


def _differentiated(sigma: Any) -> bool:
    """Whether a derivative in sigma is asked for, in reverse or forward mode."""
    if not isinstance(sigma, Tensor):
        return False
    if sigma.requires_grad:
        return True
    return forward_ad.unpack_dual(sigma).tangent is not None  # type: ignore[no-untyped-call]


class Preconditioned:
    """A denoiser `D(x, sigma, **extra_args)` around a network.

    Args:
        net: `net(x_in, c_noise, **extra_args) -> F`, with x_in the shape of x, c_noise of shape
            [B].
        scalings: sigma -> (c_skip, c_out, c_in, c_noise), for a float and for a float64 tensor.
        dtype: dtype of the network's input; None is the dtype of x. F may be of lower precision
            than x, never of higher.

    Raises:
        TypeError: net cannot be called, dtype is not a floating one.
    """

    #: The smallest level this is meant for; 0 has no bound.
    sigma_min: float = 0.0

    def __init__(
        self,
        net: Network,
        scalings: Callable[[Any], tuple[Any, Any, Any, Any]],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.net: Network = check.function("net", net)
        self._scalings = check.function("scalings", scalings)
        if dtype is not None and dtype not in check.STATE_DTYPES:
            raise TypeError(f"dtype must be None or a floating dtype; got {dtype}")
        self.dtype = dtype

    def coefficients(self, sigma: Any) -> Coefficients:
        """(c_skip, c_out, c_in, c_noise) at a float or at every entry of a tensor; float64."""
        return Coefficients(*self._scalings(exact(sigma)))

    def network(self, x_in: Tensor, c_noise: Tensor, **extra_args: Any) -> Tensor:
        """F(x_in, c_noise): what the loop calls when it does the rest itself."""
        return self.net(x_in, c_noise, **extra_args)

    def __call__(self, x: Tensor, sigma: float | Tensor, **extra_args: Any) -> Tensor:
        """x0 for x at level sigma.

        Args:
            x: [B, ...] in Karras coordinates.
            sigma: positive; a number or a tensor of shape [] or [B] on the device of x.
            extra_args: handed to the network.

        Returns:
            Tensor like x.

        Raises:
            TypeError: x or sigma of the wrong kind; the network returned something else than a
                floating tensor of at most the precision of x.
            ValueError: wrong shapes or devices, a level that is not positive.
        """
        check.state("x", x)
        sigma = check.level("sigma", sigma, x)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        noise_dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        if isinstance(c_noise, Tensor):
            c_noise = c_noise.to(noise_dtype).expand(x.shape[0])
        else:
            c_noise = torch.full((x.shape[0],), c_noise, dtype=noise_dtype, device=x.device)
        if _differentiated(sigma):
            return self._plain(x, c_skip, c_out, c_in, c_noise, extra_args)
        if isinstance(sigma, Tensor) and not sigma.ndim:
            c_skip, c_out, c_in = (
                c.expand(x.shape[0]) if isinstance(c, Tensor) else c for c in (c_skip, c_out, c_in)
            )
        x_in = ops.scale_input(x, c_in, dtype=self.dtype or x.dtype)
        f = check.model_output("net", self.network(x_in, c_noise, **extra_args), x)
        return ops.weighted_step(x, [f], _rows(c_skip, c_out, x))

    def _plain(
        self, x: Tensor, c_skip: Any, c_out: Any, c_in: Any, c_noise: Tensor, extra: dict[str, Any]
    ) -> Tensor:
        """The same in torch, for derivatives in sigma: fused steps take weights as constants."""
        x_in = (x * per_sample(c_in, x)).to(self.dtype or x.dtype)
        f = check.model_output("net", self.network(x_in, c_noise, **extra), x)
        result: Tensor = x * per_sample(c_skip, x) + f.to(x.dtype) * per_sample(c_out, x)
        return result


def _rows(c_skip: Any, c_out: Any, x: Tensor) -> Any:
    """Weights of the step that makes D: floats, or one row a sample."""
    if not isinstance(c_skip, Tensor) and not isinstance(c_out, Tensor):
        return c_skip, c_out
    pair = [
        c if isinstance(c, Tensor) else torch.full((), c, dtype=torch.float64, device=x.device)
        for c in (c_skip, c_out)
    ]
    return torch.stack([c.expand(x.shape[0]) for c in pair], dim=1)
