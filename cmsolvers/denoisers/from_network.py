"""Denoisers D(x, sigma) -> x0 from networks: eps, v, x0, score, velocity, EDM's or TrigFlow's F.

Every one is `D = c_skip x + c_out F(c_in x, c_noise)` with coefficients in float64. Called by
itself a denoiser takes three launches, network aside; inside a sampler the loop reads
`coefficients` and `network` instead and folds all of it into the step. Both ways are
differentiable in x and in the network. `cmsolvers.denoisers.conversions` goes the other way.
"""

from __future__ import annotations

import warnings
from typing import Literal, TypeAlias

import torch

from cmsolvers import checks as check
from cmsolvers.denoisers.preconditioning import (
    Coefficients,
    Network,
    NoiseInput,
    Preconditioned,
    edm_noise,
    noise_input,
    published_noise,
)
from cmsolvers.denoisers.scalings import (
    ConsistencyScalings,
    EDMScalings,
    InProcess,
    Target,
)
from cmsolvers.denoisers.shared_help import documented
from cmsolvers.processes import DDPM, Karras, RectifiedFlow, TrigFlow
from cmsolvers.processes.sde import Process, check_process

__all__ = [
    "EDM",
    "Coefficients",
    "ConsistencyFunction",
    "Preconditioned",
    "edm_noise",
    "from_eps",
    "from_flow",
    "from_score",
    "from_trigflow",
    "from_v",
    "from_x0",
    "published_noise",
]


_SHARED = """\
Args:
    net: `net(x_t, t, **extra_args) -> {output}`, x_t in the coordinates of `process`, t of shape
        [B]. A module becomes a submodule of the result.
    process: whose coordinates and time the network was trained in. `DDPM()` is a chain, with t from
        0 to its last index (999); `VP()` has t in [0, 1] (of a network that was trained on a chain
        it makes garbage); `Karras()` is x_0 + sigma z with sigma as t; `RectifiedFlow()` the line
        from data to noise.
    c_noise: what the network gets as its second argument: None the time of the process (of a
        `DDPM` held within the chain, a fraction between two of its levels), "edm" 0.25 ln sigma,
        "published" 250 ln sigma, "sigma", or a callable of the level, sigma or t by `coordinates`,
        that takes a float (samplers, once per level) as well as a float64 tensor.
    dtype: dtype of the network's input; None is that of x.
    time_dtype: torch.int64 or torch.int32 for a network that looks its time up in a table: it gets
        the index of the chain that is nearest to the level. None is a floating time.
    coordinates: of the states and levels that the denoiser takes, and samplers with it: "karras",
        x_t / alpha and sigma / alpha, or "process", x_t and t themselves.

Returns:
    A denoiser `D(x, sigma, **extra_args)`, a module around `net`.

Warns:
    UserWarning: a network of noise or score on a chain with `zero_terminal_snr`.

Raises:
    TypeError: net cannot be called, process is no Process, or no `DDPM` where time_dtype is given;
        a dtype that is not floating, a time_dtype that is not int64 or int32.
    ValueError: an unknown c_noise, one beside time_dtype, or one of sigma by name in coordinates
        that have no sigma; coordinates of a process whose states at time 0 are not clean data."""


def _in_process(
    net: Network,
    target: Target,
    process: Process,
    c_noise: NoiseInput,
    dtype: torch.dtype | None,
    time_dtype: torch.dtype | None,
    coordinates: Named,
) -> Preconditioned:
    check_process("process", process)
    own = check.choice("coordinates", coordinates, ("karras", "process")) == "process"
    own = own and type(process) is not Karras
    if own and isinstance(c_noise, str):
        raise ValueError(
            f"c_noise must be None or a callable of t in the coordinates of a process; got "
            f"{c_noise!r}"
        )
    given = None if c_noise is None else noise_input("c_noise", c_noise)
    if target in ("eps", "score") and getattr(process, "zero_terminal_snr", False):
        said = "noise" if target == "eps" else "score"
        warnings.warn(
            f"a network that predicts the {said} says nothing of x0 at the end of a chain with "
            "zero_terminal_snr, where x holds nothing of it: levels of 100 and more multiply its "
            "errors. Such chains are for networks that predict v (from_v)",
            stacklevel=3,
        )
    if time_dtype is not None:
        if not isinstance(process, DDPM):
            raise TypeError(
                "process must be a DDPM, whose times are whole numbers, where time_dtype is given; "
                f"got {check.describe(process)}"
            )
        if c_noise is not None:
            raise ValueError(
                "c_noise must be None where time_dtype is given: the network gets the nearest time "
                f"of the chain; got {check.describe(c_noise)}"
            )
        given = process.nearest_time
    return Preconditioned(
        net, InProcess(process, target, given, own), dtype=dtype, time_dtype=time_dtype
    )


Named: TypeAlias = Literal["karras", "process"]
_FLOW = RectifiedFlow()


@documented(_SHARED, "eps")
def from_eps(
    net: Network,
    *,
    process: Process,
    c_noise: NoiseInput = None,
    dtype: torch.dtype | None = None,
    time_dtype: torch.dtype | None = None,
    coordinates: Named = "karras",
) -> Preconditioned:
    """D = x - sigma eps, from a network that predicts the noise.

    (arguments)

    Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), eq. 15.
    """
    return _in_process(net, "eps", process, c_noise, dtype, time_dtype, coordinates)


@documented(_SHARED, "v")
def from_v(
    net: Network,
    *,
    process: Process,
    c_noise: NoiseInput = None,
    dtype: torch.dtype | None = None,
    time_dtype: torch.dtype | None = None,
    coordinates: Named = "karras",
) -> Preconditioned:
    """D from a network that predicts v = alpha z - sigma x_0.

    x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2): the process need not keep the variance.

    (arguments)

    Source: Salimans & Ho, "Progressive Distillation" (2022), section 4 and appendix D.
    """
    return _in_process(net, "v", process, c_noise, dtype, time_dtype, coordinates)


@documented(_SHARED, "x_0")
def from_x0(
    net: Network,
    *,
    process: Process,
    c_noise: NoiseInput = None,
    dtype: torch.dtype | None = None,
    time_dtype: torch.dtype | None = None,
    coordinates: Named = "karras",
) -> Preconditioned:
    """D = net, a network that predicts the clean data.

    (arguments)

    Source: Ho et al. (2020), section 3.2, the alternative to predicting the noise.
    """
    return _in_process(net, "x0", process, c_noise, dtype, time_dtype, coordinates)


@documented(_SHARED, "score")
def from_score(
    net: Network,
    *,
    process: Process,
    c_noise: NoiseInput = None,
    dtype: torch.dtype | None = None,
    time_dtype: torch.dtype | None = None,
    coordinates: Named = "karras",
) -> Preconditioned:
    """D = x + (sigma^2 / alpha) score, the score in the coordinates of the process (Tweedie).

    (arguments)

    Source: Efron, "Tweedie's formula and selection bias" (2011); Song et al. (2021).
    """
    return _in_process(net, "score", process, c_noise, dtype, time_dtype, coordinates)


@documented(_SHARED, "u")
def from_flow(
    net: Network,
    *,
    process: Process = _FLOW,
    c_noise: NoiseInput = None,
    dtype: torch.dtype | None = None,
    time_dtype: torch.dtype | None = None,
    coordinates: Named | None = None,
) -> Preconditioned:
    """D from a network that predicts the velocity of the path, alpha'(t) x_0 + sigma'(t) z.

    For `RectifiedFlow()` that is u = z - x_0, and x_0 = x_t - t u; t = 1 is noise. The denoiser is
    in flow coordinates, so every sampler starts from unit noise at t = 1 and takes times
    (`flow_times`) for its levels: `euler_pf_ode(from_flow(net), z, flow_times(28, shift=3.0))`.
    With coordinates="karras" it takes (x_t / (1 - t), t / (1 - t)), and `flow_sigmas` are its
    levels; so it is by default where another process is given.

    A network that counts time the other way is `lambda x, t: -net(x, 1 - t)`; for one that is
    handed 1000 t give `c_noise=lambda t: 1000 * t`.

    (arguments)

    Source: Lipman et al., "Flow Matching for Generative Modeling" (2023), eq. 15; Liu et al., "Flow
    Straight and Fast" (2023), eq. 1.
    """
    if coordinates is None:
        coordinates = "process" if type(process) is RectifiedFlow else "karras"
    return _in_process(net, "flow", process, c_noise, dtype, time_dtype, coordinates)


def from_trigflow(
    net: Network,
    sigma_data: float = 0.5,
    *,
    c_noise: NoiseInput = None,
    dtype: torch.dtype | None = None,
) -> Preconditioned:
    """D = cos(t) x_t - sin(t) sigma_data F(x_t / sigma_data, t), in TrigFlow's coordinates.

    Args:
        net: `net(x_t / sigma_data, t, **extra_args) -> F`, t = arctan(sigma / sigma_data) of shape
            [B].
        sigma_data: standard deviation of the data, positive.
        c_noise: what the network gets instead of t: "edm" 0.25 ln sigma, "published" 250 ln sigma,
            "sigma", or a callable of sigma that takes a float as well as a float64 tensor.
        dtype: dtype of the network's input; None is that of x.

    Returns:
        A denoiser `D(x, sigma, **extra_args)`, a module around `net`.

    Raises:
        TypeError: net cannot be called, a dtype that is not floating.
        ValueError: sigma_data not positive, an unknown c_noise.

    Source: Lu & Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models"
    (2025), section 3.
    """
    sd = check.positive("sigma_data", sigma_data)
    handed = TrigFlow(sd).t_of_sigma if c_noise is None else noise_input("c_noise", c_noise)
    return Preconditioned(net, EDMScalings(sd, handed, sign=-1.0), dtype=dtype)


class EDM(Preconditioned):
    """EDM preconditioning around a raw network F.

    c_skip = sd^2 / (s^2 + sd^2), c_out = s sd / sqrt(s^2 + sd^2), c_in = 1 / sqrt(s^2 + sd^2).

    Args:
        net: `net(x_in, c_noise, **extra_args) -> F`.
        sigma_data: standard deviation of the data, positive.
        c_noise: "edm" (0.25 ln sigma), "published", "sigma" or a callable of sigma, which takes a
            float as well as a float64 tensor.
        dtype: dtype of x_in; None is that of x. c_noise is float32 whatever that is (float64 where
            x is): a network in half precision casts it.

    Raises:
        TypeError: net cannot be called, a dtype that is not floating.
        ValueError: sigma_data not positive, an unknown c_noise.

    Source: Karras et al. (2022), table 1 and section 5.
    """

    def __init__(
        self,
        net: Network,
        sigma_data: float = 0.5,
        *,
        c_noise: NoiseInput = "edm",
        dtype: torch.dtype | None = None,
    ) -> None:
        sd, given = check.positive("sigma_data", sigma_data), noise_input("c_noise", c_noise)
        super().__init__(net, EDMScalings(sd, given), dtype=dtype)
        self.sigma_data, self.c_noise = sd, given


class ConsistencyFunction(Preconditioned):
    """Consistency function f(x, sigma) = c_skip x + c_out F, with f(x, sigma_min) = x to the bit.

    So it is where sigma is sigma_min rounded to float32, float16 or bfloat16: a tensor of levels in
    these dtypes reaches the boundary. With e = sigma_min, c_skip = sd^2 / ((s - e)^2 + sd^2),
    c_out = (s - e) sd / sqrt(s^2 + sd^2), c_in = 1 / sqrt(s^2 + sd^2).

    f is not meant for levels below sigma_min, where c_skip falls again: a number that is lower by
    more than bfloat16 rounds is refused. The entries of tensors are not read, and their result
    there is that of the formulas. (`consistency_sample` takes such levels for sigma_min.)

    Args:
        net: `net(x_in, c_noise, **extra_args) -> F`.
        sigma_data: standard deviation of the data, positive.
        sigma_min: the level where f is the identity, positive.
        c_noise: "edm" (0.25 ln sigma), "published" (250 ln sigma, as the published checkpoints
            have it), "sigma" or a callable of sigma, which takes a float as well as a float64
            tensor.
        dtype: dtype of x_in; None is that of x. c_noise is float32 whatever that is (float64 where
            x is): a network in half precision casts it.

    Raises:
        TypeError: net cannot be called, a dtype that is not floating.
        ValueError: sigma_data or sigma_min not positive, an unknown c_noise.

    Source: Song et al., "Consistency Models" (2023), eq. 5 and appendix C.
    """

    kind = "consistency function"

    def __init__(
        self,
        net: Network,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        c_noise: NoiseInput = "edm",
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        sd, given = check.positive("sigma_data", sigma_data), noise_input("c_noise", c_noise)
        end = check.positive("sigma_min", sigma_min)
        super().__init__(net, ConsistencyScalings(sd, end, given), dtype=dtype)
        self.sigma_data, self.sigma_min, self.c_noise = sd, end, given
        self._below = (1.0 - 2.0**-8) * end
