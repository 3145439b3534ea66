"""Preconditioning: D = c_skip x + c_out F(c_in x, c_noise), coefficients in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.denoisers.protocol import Extra, Scalar
from cmsolvers.denoisers.scalings import EDMScalings, Row
from cmsolvers.denoisers.signature import CALLED, signature_of
from cmsolvers.ops.one_forward_mode import one_forward_mode
from cmsolvers.processes.coordinates import Coordinates, coordinates_of
from cmsolvers.processes.elementary import broadcastable, exact, maths

Network: TypeAlias = Callable[..., Tensor]
NoiseInput: TypeAlias = str | Callable[[Scalar], Scalar] | None

INTEGERS = (torch.int64, torch.int32)
"""Dtypes of the times that tables of embeddings are looked up with."""

_STATES = frozenset(check.STATE_DTYPES)


class Coefficients(NamedTuple):
    """Preconditioning at one level: floats for a float level, float64 tensors for a tensor."""

    c_skip: Scalar
    c_out: Scalar
    c_in: Scalar
    c_noise: Scalar


def edm_noise(sigma: Scalar) -> Scalar:
    """0.25 ln sigma: c_noise of EDM."""
    return 0.25 * maths(sigma).log(sigma)


def published_noise(sigma: Scalar) -> Scalar:
    """250 ln sigma: c_noise of the published consistency checkpoints."""
    return 250.0 * maths(sigma).log(sigma)


def identity_noise(sigma: Scalar) -> Scalar:
    """The level itself: c_noise of networks that are handed sigma."""
    return sigma


_NOISE_INPUTS = {"edm": edm_noise, "published": published_noise, "sigma": identity_noise}


def noise_input(name: str, value: NoiseInput) -> Callable[[Scalar], Scalar]:
    """What the network gets for sigma, from a name or a callable."""
    if isinstance(value, str):
        if value not in _NOISE_INPUTS:
            known = ", ".join(repr(key) for key in _NOISE_INPUTS)
            raise ValueError(f"{name} must be {known} or a callable; got {value!r}")
        return _NOISE_INPUTS[value]
    return check.function(name, value)


def _factor(c_noise: object) -> float:
    """Of ln sigma in what a network is handed; 0 where it is something else."""
    return 0.25 if c_noise is edm_noise else 250.0 if c_noise is published_noise else 0.0


def _noise_of(levels: Tensor, c_noise: Callable[[Scalar], Scalar], dtype: torch.dtype) -> Tensor:
    """c_noise of float64 levels in the network's dtype, the bits of c_noise(levels).to(dtype)."""
    factor = _factor(c_noise)
    wide = dtype is torch.float32 or dtype is torch.float64  # torch rounds twice to narrower ones
    followed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if factor == 0.0 or not wide or followed:
        return cast(Tensor, c_noise(levels)).to(dtype)
    return ops.scale_input(levels.log(), factor, dtype=dtype)  # one launch, cast included


def as_written(module: nn.Module, forward: Callable[..., Tensor]) -> bool:
    """Whether calling the module is calling that `forward`, no more: not overridden, no hooks."""
    kind = type(module)
    return (
        kind.forward is forward
        and kind.__call__ is nn.Module.__call__
        and "forward" not in module.__dict__
        and not (module._forward_pre_hooks or module._forward_hooks)
        and not (module._backward_pre_hooks or module._backward_hooks)
        and module._compiled_call_impl is None
        and not (global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks)
    )


def training_mode(*parts: object) -> bool:
    """Of a wrapper around these: in evaluation mode where all the modules among them are."""
    modes = [part.training for part in parts if isinstance(part, nn.Module)]
    return any(modes) or not modes


class Preconditioned(nn.Module):
    """A denoiser `D(x, sigma, **extra_args)` around a network.

    It is a module, in the training mode of the network: `.to`, `.parameters`, `state_dict` (with
    the network's names after "net."), copies and averages act on the network, where that is a
    module; any other callable is simply kept. `.to(dtype)` does not change `dtype`.

    Args:
        net: `net(x_in, c_noise, **extra_args) -> F`, with x_in the shape of x, c_noise of shape
            [B].
        scalings: sigma -> (c_skip, c_out, c_in, c_noise), for a float and for a float64 tensor.
        dtype: dtype of the network's input; None is the dtype of x. F may be of lower precision
            than x, never of higher.
        time_dtype: dtype of c_noise: None is float32, or float64 where x is that. The scalings of a
            network with int64 or int32 times give whole numbers as c_noise.

    Raises:
        TypeError: net cannot be called, dtype is not a floating one, time_dtype not None, int64 or
            int32.
    """

    #: What errors call it.
    kind: str = "denoiser"

    #: The smallest level this is meant for; 0 has no bound.
    sigma_min: float = 0.0

    #: Numbers above this are taken as levels without a further look.
    _below: float = 0.0

    def __init__(
        self,
        net: Network,
        scalings: Callable[[Scalar], Row],
        *,
        dtype: torch.dtype | None = None,
        time_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.net: Network = check.function("net", net)
        self._scalings = check.function("scalings", scalings)
        if dtype is not None and dtype not in check.STATE_DTYPES:
            raise TypeError(f"dtype must be None or a floating dtype; got {dtype}")
        self.dtype = dtype
        if time_dtype is not None and time_dtype not in INTEGERS:
            raise TypeError(
                f"time_dtype must be None, torch.int64 or torch.int32; got {time_dtype}"
            )
        self.time_dtype = time_dtype
        self.training = training_mode(net)

    @property
    def coordinates(self) -> Coordinates:
        """Of states and levels: `sigma` stands for a level in them everywhere."""
        return coordinates_of(self._scalings)

    @property
    def signature(self) -> Hashable | None:
        """What a run on the host settles about this denoiser, the network aside.

        Denoisers that were made alike have equal ones, so that a run that was prepared for one
        serves the other. None: such a run must not be kept, because a part of the coefficients may
        change.
        """
        if not as_written(self, Preconditioned.forward):
            return CALLED
        if not self._keeps_coefficients():
            return None
        return signature_of(self._scalings, self.dtype, self.time_dtype)

    def coefficients(self, sigma: Scalar) -> Coefficients:
        """(c_skip, c_out, c_in, c_noise) at a float or at every entry of a tensor; float64."""
        return Coefficients(*self._scalings(exact(sigma)))

    def pair_rows(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor] | None:
        """The weights of a consistency pair in one launch, see `ops.consistency_rows`.

        None where the scalings are not EDM's or those of a consistency function.
        """
        scalings = self._scalings
        if self._keeps_coefficients() and isinstance(scalings, EDMScalings) and scalings.sign == 1:
            return scalings.pair_rows(high, low)
        return None

    def pair_inputs(self, high: Tensor, low: Tensor, x: Tensor) -> tuple[Tensor, ...] | None:
        """The same without the states, see `ops.consistency_inputs`; with what the network is told.

        That is left out where it is no multiple of ln sigma in float32, the dtype of c_noise for x.
        """
        scalings = self._scalings
        if not (self._keeps_coefficients() and isinstance(scalings, EDMScalings)):
            return None
        if scalings.sign != 1:
            return None
        told = self.noise_dtype(x) is torch.float32
        return scalings.pair_inputs(high, low, _factor(scalings.c_noise) if told else 0.0)

    def told(self, level: Tensor, x: Tensor) -> Tensor:
        """What the network gets for float64 levels [B], with a state x; a tensor of its own."""
        scalings, dtype = self._scalings, self.noise_dtype(x)
        if self._keeps_coefficients() and isinstance(scalings, EDMScalings):
            told = _noise_of(level, scalings.c_noise, dtype)
            return told.clone() if told is level else told
        found: Scalar = self.coefficients(level).c_noise
        # A number is filled in on the device: a copy from the host would be waited for.
        filled: Tensor = found if isinstance(found, Tensor) else level.new_full((), float(found))
        return filled.to(level.device).expand(level.shape).to(dtype, copy=True)

    def noise_dtype(self, x: Tensor) -> torch.dtype:
        """Dtype of the c_noise that the network gets for a state x."""
        if self.time_dtype is not None:
            return self.time_dtype
        return torch.float64 if x.dtype is torch.float64 else torch.float32

    def network(self, x_in: Tensor, c_noise: Tensor, **extra_args: Any) -> Tensor:
        """F(x_in, c_noise): what the loop calls when it does the rest itself."""
        net = self._modules.get("net")  # attributes that are modules are slow to read
        return (self.net if net is None else net)(x_in, c_noise, **extra_args)

    def raw(self, x: Tensor, sigma: Tensor, end: Tensor | None = None, **extra_args: Any) -> Tensor:
        """F for a state and levels [B], in plain torch: differentiable in both.

        `end` is there for what treats flow maps of two times alike, and is not read.
        """
        _, _, c_in, c_noise = self.coefficients(sigma)
        x_in = (x * broadcastable(c_in, x)).to(self.dtype or x.dtype)
        return self._called(x, x_in, c_noise, extra_args)

    def skip_out(self, sigma: Scalar, end: Scalar = 0.0) -> tuple[Scalar, Scalar]:
        """(c_skip, c_out); `end` is not read."""
        c_skip, c_out, _, _ = self.coefficients(sigma)
        return c_skip, c_out

    def start_rates(self, sigma: Tensor, end: Scalar = 0.0) -> tuple[Tensor, Tensor]:
        """Derivatives of (c_skip, c_out) in sigma, float64 [B]; `end` is not read.

        By automatic differentiation, so that they are those of any scalings.
        """
        level = exact(sigma)

        def both(at: Tensor) -> tuple[Tensor, Tensor]:
            c_skip, c_out, _, _ = self.coefficients(at)
            return c_skip + 0.0 * at, c_out + 0.0 * at  # scalings may give numbers

        with torch.no_grad(), one_forward_mode():
            rates: tuple[Tensor, Tensor] = torch.func.jvp(
                both, (level,), (torch.ones_like(level),)
            )[1]
        return rates

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, sigma: float | Tensor, **extra_args: Any) -> Tensor:
            """As `forward`, with the hooks of a module."""

    def forward(self, x: Tensor, sigma: float | Tensor, **extra_args: Any) -> Tensor:
        """x0 for x at level sigma.

        Args:
            x: [B, ...] in `coordinates`.
            sigma: the level in them, positive; a number or a tensor of shape [] or [B] on the
                device of x.
            extra_args: handed to the network.

        Returns:
            Tensor like x.

        Raises:
            TypeError: x or sigma of the wrong kind; the network returned something else than a
                floating tensor of at most the precision of x.
            ValueError: wrong shapes or devices, a level that is not positive, or a number below the
                smallest level that this is meant for. The entries of a tensor are not read.
        """
        # Quick tests that accept what is usual; the checks know the rest, and the errors.
        if type(x) is not Tensor or x.dtype not in _STATES or x.is_meta or x.ndim == 0:
            check.state("x", x)
        if type(sigma) is not float or not self._below < sigma < math.inf:
            sigma = self._level(sigma, x)
        if isinstance(sigma, Tensor) and check.differentiated(sigma):
            return self._plain(x, sigma, extra_args)
        scalings = self._scalings
        known = self._keeps_coefficients()
        if known and isinstance(scalings, EDMScalings) and scalings.sign == 1.0:
            # the steps make their weights of the levels, tensors too with the bits of numbers
            if isinstance(sigma, Tensor):
                c_noise = _noise_of(sigma.double(), scalings.c_noise, self.noise_dtype(x))
                if c_noise is sigma:  # networks may write to what they get
                    c_noise = c_noise.clone()
            else:
                c_noise = scalings.c_noise(sigma)
            x_in = scalings.scaled_input(x, sigma, self.dtype)
            return scalings.output(x, self._called(x, x_in, c_noise, extra_args), sigma)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        x_in = ops.scale_input(x, c_in, dtype=self.dtype)
        f = self._called(x, x_in, c_noise, extra_args)
        return ops.weighted_step(x, (f,), (c_skip, c_out))

    def _level(self, sigma: float | Tensor, x: Tensor) -> float | Tensor:
        """A level that was not accepted at first sight, checked."""
        level = check.level("sigma", sigma, x)
        if not isinstance(level, Tensor) and not level > self._below:
            raise ValueError(
                f"sigma must not be below sigma_min, {self.sigma_min:g}, where this {self.kind} "
                f"ends; got {level:g}"
            )
        return level

    def _called(self, x: Tensor, x_in: Tensor, c_noise: Scalar, extra: Extra) -> Tensor:
        """F, checked; c_noise a number, or of shape [] or [B]."""
        dtype, batch = self.noise_dtype(x), (x.shape[0],)
        if not isinstance(c_noise, Tensor):
            c_noise = torch.full(batch, c_noise, dtype=dtype, device=x.device)
        elif c_noise.dtype is not dtype or c_noise.shape != batch:
            c_noise = c_noise.to(dtype).expand(batch)
        elif dtype is torch.float64:  # it may be sigma itself, and networks may write to it
            c_noise = c_noise.clone()
        return check.model_output("net", self.network(x_in, c_noise, **extra), x)

    def _keeps_coefficients(self) -> bool:
        """Whether `coefficients` is the one of this class: neither a subclass nor x replaced it."""
        own = type(self).coefficients is Preconditioned.coefficients
        return own and "coefficients" not in self.__dict__

    def _plain(self, x: Tensor, sigma: Tensor, extra: Extra) -> Tensor:
        """The same in torch, for derivatives in sigma: fused steps take weights as constants."""
        c_skip, c_out = self.skip_out(sigma)
        f = self.raw(x, sigma, **extra)
        result: Tensor = x * broadcastable(c_skip, x) + f.to(x.dtype) * broadcastable(c_out, x)
        return result
