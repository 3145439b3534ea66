"""From a denoiser back to eps, v, x0, score, velocity and the raw F of EDM or TrigFlow.

Each is the inverse of its namesake in `cmsolvers.denoisers`, so any kind of network becomes any
other by way of a denoiser: `to_v(from_eps(net, process=DDPM()), process=VP())`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.denoisers.preconditioning import identity_noise, noise_input, training_mode
from cmsolvers.denoisers.protocol import Denoiser, Scalar
from cmsolvers.denoisers.scalings import EDMScalings, InProcess, Row, Target
from cmsolvers.denoisers.shared_help import documented
from cmsolvers.processes import VP, Karras, Process, RectifiedFlow, TrigFlow
from cmsolvers.processes.coordinates import in_karras
from cmsolvers.processes.elementary import broadcastable, exact, maths
from cmsolvers.processes.sde import check_process

__all__ = [
    "Prediction",
    "to_edm",
    "to_eps",
    "to_flow",
    "to_score",
    "to_trigflow",
    "to_v",
    "to_x0",
]


def _time(name: str, value: float | Tensor, x: Tensor) -> float | Tensor:
    """A time for state x: a finite number, or a tensor [] or [B] of floats or ints, not read."""
    if not isinstance(value, Tensor):
        return check.finite(name, value)
    if value.dtype is torch.bool or value.dtype.is_complex:
        raise TypeError(f"{name} must hold real numbers; got {value.dtype}")
    return check.for_samples(name, value, x)


class Prediction(nn.Module):
    """What a network would say that is behind a denoiser: F = (D - c_skip x) / c_out.

    Args:
        denoiser: `D(x, sigma, **extra_args) -> x0`, sigma [B], in any coordinates that it names.
            A module becomes a submodule.
        scalings: level -> (c_skip, c_out, c_in, c_noise).
        level_of: the time or c_noise of the call -> level.

    Raises:
        TypeError: an argument that cannot be called.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scalings: Callable[[Scalar], Row],
        level_of: Callable[[Scalar], Scalar],
    ) -> None:
        super().__init__()
        self.denoiser: Denoiser = check.function("denoiser", denoiser)
        self.scalings = check.function("scalings", scalings)
        self.level_of = check.function("level_of", level_of)
        self.training = training_mode(denoiser)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, t: float | Tensor, **extra_args: Any) -> Tensor:
            """As `forward`, with the hooks of a module."""

    def forward(self, x: Tensor, t: float | Tensor, **extra_args: Any) -> Tensor:
        """F for the network's input x at its time t.

        Args:
            x: [B, ...], in the network's coordinates: c_in times Karras ones.
            t: the network's time; a number or a tensor of shape [] or [B], floats or ints. Where
                the level is 0 or infinite there is no answer.
            extra_args: handed to the denoiser.

        Returns:
            Tensor like x; differentiable in x and the denoiser.

        Raises:
            TypeError: x or t of the wrong kind; the denoiser returned something else than a
                floating tensor of at most the precision of x.
            ValueError: wrong shapes or devices, a number t at which the level is not positive and
                finite.
        """
        check.state("x", x)
        level = self.level_of(exact(_time("t", t, x)))
        if not isinstance(level, Tensor) and not 0.0 < level < math.inf:
            raise ValueError(f"t must have a positive, finite noise level; got {t} at {level:g}")
        c_skip, c_out, c_in, _ = self.scalings(level)
        # In float32 at least: half precision has no digits to lose in the difference.
        wide = torch.promote_types(x.dtype, torch.float32)
        x_hat = (x.to(wide) / broadcastable(c_in, x.to(wide))).to(x.dtype)
        if isinstance(level, Tensor):
            levels = level.to(x.dtype).expand(x.shape[0])
        else:
            levels = x.new_full((x.shape[0],), level)
        clean = in_karras(self.denoiser)(x_hat, levels, **extra_args)
        check.model_output("denoiser", clean, x_hat)
        x_hat = x_hat.to(wide)
        rest = clean.to(wide) - broadcastable(c_skip, x_hat) * x_hat
        result: Tensor = (rest / broadcastable(c_out, x_hat)).to(x.dtype)
        return result


def _in_process(denoiser: Denoiser, target: Target, process: Process) -> Prediction:
    check_process("process", process)
    return Prediction(denoiser, InProcess(process, target), process.sigma_hat)


_SHARED = """\
Args:
    denoiser: `D(x, sigma, **extra_args) -> x0`, sigma [B], in any coordinates that it names. A
        module becomes a submodule of the result.
    process: in whose coordinates and time the result is called. Of a `DDPM` t is the index in the
        chain.

Returns:
    `{output}(x_t, t, **extra_args)`, a `Prediction`; t is a number or a tensor of shape [] or [B].

Raises:
    TypeError: denoiser cannot be called, process is no Process."""


_KARRAS = Karras()
_VP = VP()
_FLOW = RectifiedFlow()


@documented(_SHARED, "eps")
def to_eps(denoiser: Denoiser, *, process: Process = _KARRAS) -> Prediction:
    """The noise, eps = (x_t - alpha D) / sigma.

    (arguments)

    Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), eq. 15 solved for eps.
    """
    return _in_process(denoiser, "eps", process)


@documented(_SHARED, "v")
def to_v(denoiser: Denoiser, *, process: Process = _VP) -> Prediction:
    """The v of progressive distillation, v = alpha eps - sigma D.

    (arguments)

    Source: Salimans & Ho, "Progressive Distillation" (2022), section 4 and appendix D.
    """
    return _in_process(denoiser, "v", process)


@documented(_SHARED, "x_0")
def to_x0(denoiser: Denoiser, *, process: Process = _KARRAS) -> Prediction:
    """The clean data D, called in the coordinates and time of a process.

    (arguments)
    """
    return _in_process(denoiser, "x0", process)


@documented(_SHARED, "score")
def to_score(denoiser: Denoiser, *, process: Process = _KARRAS) -> Prediction:
    """The score (alpha D - x_t) / sigma^2, what `process.reverse` wants.

    `process.score_of` is the same for times that the caller has checked.

    (arguments)

    Source: Efron, "Tweedie's formula and selection bias" (2011); Song et al. (2021).
    """
    return _in_process(denoiser, "score", process)


@documented(_SHARED, "u")
def to_flow(denoiser: Denoiser, *, process: Process = _FLOW) -> Prediction:
    """The velocity alpha' D + sigma' eps of the path: for `RectifiedFlow` eps - D.

    It is the right-hand side of the probability-flow ODE in the coordinates of the process.

    (arguments)

    Source: Lipman et al., "Flow Matching for Generative Modeling" (2023), eq. 15.
    """
    return _in_process(denoiser, "flow", process)


# What a network was handed -> level, by the names of `noise_input`.
_LEVELS: dict[str, Callable[[Scalar], Scalar]] = {
    "edm": lambda c: maths(c).exp(4.0 * c),
    "published": lambda c: maths(c).exp(c / 250.0),
    "sigma": identity_noise,
}


def to_edm(denoiser: Denoiser, sigma_data: float = 0.5, *, c_noise: str = "edm") -> Prediction:
    """EDM's raw network: `F(x_in, c_noise)`, the inverse of `EDM(net, sigma_data)`.

    Args:
        denoiser: `D(x, sigma, **extra_args) -> x0`, sigma [B], in any coordinates that it names.
        sigma_data: standard deviation of the data, positive.
        c_noise: what the result gets as its second argument: "edm" 0.25 ln sigma, "published" 250
            ln sigma, "sigma".

    Returns:
        `F(x_in, c_noise, **extra_args)`, x_in = x / sqrt(sigma^2 + sigma_data^2).

    Raises:
        TypeError: denoiser cannot be called.
        ValueError: sigma_data not positive, an unknown c_noise.
    """
    sd = check.positive("sigma_data", sigma_data)
    if c_noise not in _LEVELS:
        known = ", ".join(map(repr, _LEVELS))
        raise ValueError(f"c_noise must be one of {known}; got {check.describe(c_noise)}")
    scalings = EDMScalings(sd, noise_input("c_noise", c_noise))
    return Prediction(denoiser, scalings, _LEVELS[c_noise])


def to_trigflow(denoiser: Denoiser, sigma_data: float = 0.5) -> Prediction:
    """TrigFlow's raw network: `F(x_t / sigma_data, t)`, the inverse of `from_trigflow`.

    Args:
        denoiser: `D(x, sigma, **extra_args) -> x0`, sigma [B], in any coordinates that it names.
        sigma_data: standard deviation of the data, positive.

    Returns:
        `F(x_t / sigma_data, t, **extra_args)`, t in (0, pi/2).

    Raises:
        TypeError: denoiser cannot be called.
        ValueError: sigma_data not positive.
    """
    process = TrigFlow(check.positive("sigma_data", sigma_data))
    scalings = EDMScalings(process.sigma_data, process.t_of_sigma, sign=-1.0)
    return Prediction(denoiser, scalings, process.sigma_hat)
