"""Log-likelihood by the probability-flow ODE, with the trace exact or estimated.

Along dx/dsigma = (x - D)/sigma the log density changes by -(d - tr dD/dx)/sigma. State and
integral are integrated together, from the level of the data up to that of the prior; each sample
has its own steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers.composed import all_samples
from cmsolvers.engine.adaptive import SolverError
from cmsolvers.processes.coordinates import in_karras
from cmsolvers.solvers.rk_pf_ode import solve
from cmsolvers.tasks.jacobian_trace import ExactTrace, Hutchinson, Trace

__all__ = ["Likelihood", "bits_per_dim", "log_likelihood"]

Prior = Callable[[Tensor], Tensor]
_OFFSETS = {"[-1, 1]": 7.0, "[0, 1]": 8.0}


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log densities with their errors, as `log_likelihood` returns them.

    Attributes:
        log_density: [B], in nats, float64.
        standard_error: [B], of the trace estimate, over the probes; zero where the trace is exact,
            NaN with a single probe. With P probes the error over it follows Student's law with
            P - 1 degrees of freedom: with 2 it is below 1 in 50 % of all cases, not in 68 %.
        latent: [B, ...], where the ODE took x.
        nfe: [B], evaluations of the denoiser; with d tangents (exact trace) or several probes each
            of them is one call on a batch that many times as large.
    """

    log_density: Tensor
    standard_error: Tensor
    latent: Tensor
    nfe: Tensor


def bits_per_dim(
    log_density: Tensor, dims: int, *, data_range: Literal["[-1, 1]", "[0, 1]"] = "[-1, 1]"
) -> Tensor:
    """Bits per dimension of 8-bit data that was scaled to `data_range`.

    -log p / (D ln 2) + 7 for [-1, 1] (a grey level is 2/256 wide), + 8 for [0, 1].

    Args:
        log_density: in nats, any shape.
        dims: D, elements per sample.
        data_range: how the data were scaled.

    Raises:
        TypeError, ValueError: dims no positive int, an unknown range.

    Source: Song et al., "Score-Based Generative Modeling through SDEs" (2021), appendix D.2;
    Theis et al., "A note on the evaluation of generative models" (2016).
    """
    if data_range not in _OFFSETS:
        raise ValueError(f'data_range must be "[-1, 1]" or "[0, 1]"; got {data_range!r}')
    size = check.count("dims", dims)
    return -log_density / (size * math.log(2.0)) + _OFFSETS[data_range]


class _Augmented:
    """A denoiser on rows (x, l_1 ... l_P), whose ODE carries the integrals of the traces along.

    The ODE dl/dsigma = (l - D_l)/sigma with D_l = l - (1 - tr/d) adds up what the log density
    loses, in nats per dimension.
    """

    def __init__(self, trace: Trace, shape: torch.Size) -> None:
        self._trace, self._shape = trace, shape
        self._size = math.prod(shape)

    def __call__(self, y: Tensor, sigma: Tensor, **extra: object) -> Tensor:
        x, integrals = y[:, : self._size], y[:, self._size :]
        denoised, traces = self._trace(x.reshape(-1, *self._shape), sigma, extra)
        rates = 1.0 - traces / self._size
        return torch.cat([denoised.reshape(x.shape).to(y.dtype), integrals - rates], dim=1)


def log_likelihood(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    *,
    trace: Literal["exact", "rademacher", "gaussian"] = "rademacher",
    probes: int = 1,
    prior: Prior | None = None,
    derivative: Literal["forward", "reverse"] = "forward",
    method: Literal["dopri54", "tsit54", "bosh32", "heun21"] = "dopri54",
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_steps: int = 4096,
    mode: Literal["compact", "masked"] = "compact",
    seed: noise.SeedLike = None,
    extra_args: Mapping[str, object] | None = None,
    progress: bool = False,
) -> Likelihood:
    """Log density of x under the model, by its probability-flow ODE.

    log p(x) = log prior(x(sigma_max)) + the integral of (d - tr dD/dx)/sigma over sigma. One
    forward pass with tangents gives drift and trace together; each sample has its own steps, and
    its own probes, kept along its whole path.

    Args:
        denoiser: as in `euler_pf_ode`, differentiable in x. (The result is not differentiable.)
        x: [B, ...] at level sigmas[-1]: data, where that level is small. float64, float32; lower
            precision is refused.
        sigmas: descending; only the ends are used, the last must be positive.
        trace: "exact" (d tangents, for small d), or Hutchinson's estimate with probes of random
            signs or of unit normals.
        probes: of the estimate, at least 1.
        prior: log density of x(sigmas[0]), [B, ...] -> [B]; N(0, sigmas[0]^2) by default. The law
            of x there is wider by that of the data, which costs some hundredths of a nat per sample
            at usual levels; a prior with their variance costs less.
        derivative: "forward" (one forward pass) or "reverse", for networks without a forward mode.
        method: as in `rk_pf_ode`.
        rtol: relative tolerance of a step, for x and for the integral in nats per dimension.
        atol: absolute tolerance; with both at 1e-6 the log density of a mixture is right to some
            1e-5 nats per dimension.
        max_steps: as in `rk_pf_ode`.
        mode: as in `rk_pf_ode`.
        seed: of the probes (stream 5, draw k for probe k).
        extra_args: further keyword arguments for the denoiser; tensors whose first size is B are
            rows of samples.
        progress: show a bar.

    Returns:
        A `Likelihood`.

    Raises:
        SolverError: as in `rk_pf_ode`; it carries the states reached.
        TypeError, ValueError: as in `rk_pf_ode`, and options out of range.

    Source: Song et al., "Score-Based Generative Modeling through SDEs" (2021), appendix D.2;
    Hutchinson (1989); Grathwohl et al., "FFJORD" (2019).
    """
    check.state("x", x)
    if x.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"x must be float64 or float32; got {x.dtype}")
    check.function("denoiser", denoiser)
    check.optional_function("prior", prior)
    levels = check.sigmas("sigmas", sigmas)
    if levels[-1] == 0:
        raise ValueError("sigmas must end above 0, at the level of the data; got 0")
    count = check.count("probes", probes)
    kind = check.choice("trace", trace, ("exact", "rademacher", "gaussian"))
    forward = check.choice("derivative", derivative, ("forward", "reverse")) == "forward"
    extra = {**all_samples(denoiser, x), **check.options("extra_args", extra_args)}
    batch, shape = x.shape[0], x.shape[1:]
    size = math.prod(shape)
    if size == 0:
        raise ValueError(f"x must have at least one element per sample; got shape {list(x.shape)}")
    estimate: Trace
    if kind == "exact":
        count, estimate = 1, ExactTrace(in_karras(denoiser), forward)
    else:
        estimate = Hutchinson(in_karras(denoiser), forward)
        extra = {**extra, estimate.ARGUMENT: _probes(x, kind, count, seed)}
    x = x.detach()
    start = torch.cat([x.reshape(batch, size), x.new_zeros(batch, count)], dim=1)
    try:
        end, info = solve(
            _Augmented(estimate, shape),
            start,
            (levels[-1], levels[0]),
            name="log_likelihood",
            method=method,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            mode=mode,
            extra_args=extra,
            progress=progress,
        )
    except SolverError as failure:
        reached = failure.x[:, :size].reshape(x.shape)
        raise SolverError(str(failure), reached, failure.sigma, failure.info) from None
    latent = end[:, :size].reshape(x.shape)
    integrals = size * end[:, size:].double()
    first = _normal(latent, levels[0]) if prior is None else prior(latent).double()
    if first.shape != (batch,):
        raise ValueError(f"prior must return shape [B] = [{batch}]; got {list(first.shape)}")
    error = integrals.std(dim=1) / math.sqrt(count) if count > 1 else integrals[:, 0] * math.nan
    if kind == "exact":
        error = torch.zeros_like(error)
    return Likelihood(first + integrals.mean(dim=1), error, latent, info.nfe)


def _probes(x: Tensor, kind: str, count: int, seed: noise.SeedLike) -> Tensor:
    """[B, P, ...]: probe k of a sample is draw k of its stream."""
    key = noise.key(seed, x.shape[0], device=x.device)
    drawn = [
        noise.normal(x.shape, key, stream=noise.OTHER, draw=k, dtype=x.dtype, device=x.device)
        for k in range(count)
    ]
    z = torch.stack(drawn, dim=1)
    return z if kind == "gaussian" else torch.where(z < 0, -1.0, 1.0).to(x.dtype)


def _normal(x: Tensor, std: float) -> Tensor:
    """Log density of N(0, std^2), [B], float64."""
    flat = x.double().reshape(x.shape[0], -1)
    volume = flat.shape[1] * math.log(2 * math.pi * std**2)
    return -0.5 * (flat.square().sum(1) / std**2 + volume)
