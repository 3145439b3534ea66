"""All weights of a consistency pair from its levels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cmsolvers.checks import non_negative, positive
from cmsolvers.ops import rules
from cmsolvers.ops.binary import C
from cmsolvers.ops.registration import library
from cmsolvers.ops.step import tracing

FAST: Callable[..., tuple[Tensor, Tensor] | None] | None = (
    None if C is None else C.fast_consistency_rows
)
"""fast_consistency_rows(sigma, sigma_next, sigma_data, sigma_min), positional only: the plain case
straight into the kernel; None in every other case."""

LOOK: Callable[..., int | None] | None = None if C is None else C.look_at_levels
"""look_at_levels(x0, t, s, most), positional only, of plain float64 [B] on the CPU where every
sample has 0 < t <= most, t finite, and 0 <= s <= t: a sum of EQUAL, SOME_ZERO, ALL_ZERO, for t = s
somewhere, s = 0 somewhere or everywhere; None in every other case, and of other data x0."""
EQUAL, SOME_ZERO, ALL_ZERO = 1, 2, 4

ALIKE: Callable[..., bool] | None = None if C is None else C.alike
"""alike(a, b), positional only: see below; False in every case that is not plain."""

FAST_INPUTS: Callable[..., tuple[Tensor, ...] | None] | None = (
    None if C is None else C.fast_pair_inputs
)
"""fast_pair_inputs(sigma, sigma_next, sigma_data, sigma_min, noise_factor), positional only: what
`consistency_inputs` returns, without times where the factor is 0; None where that is not plain."""

library.define(
    "consistency_rows(Tensor sigma, Tensor sigma_next, float sigma_data, float sigma_min) -> "
    "(Tensor, Tensor)"
)


def consistency_rows(
    sigma: Tensor, sigma_next: Tensor, sigma_data: float = 0.5, sigma_min: float = 0.002
) -> tuple[Tensor, Tensor]:
    """The weights with which `noise_forms` and `form_distance` make a consistency pair.

    Of levels s = sigma and s' = sigma_next with c = c_in(s) = 1 / sqrt(s^2 + sigma_data^2):

    - of the noise: (1, s), (1, s'), (c, c s), (c', c' s'), which give x, x' and both inputs of the
      network;
    - of the residual f(x, s) - f(x', s'): (c_skip, c_out, -c_skip', -c_out'), for the tensors x, F,
      x', F' (Song et al. 2023, appendix C).

    sigma_min, also as float32, float16 and bfloat16 hold it, is exactly the boundary, (1, 0), as in
    `consistency_output`. So is a sigma_next of 0: x' is then x0, the target itself.

    Args:
        sigma: float64 [B], >= 0; not read on the host.
        sigma_next: float64 [B], >= 0, likewise.
        sigma_data: > 0.
        sigma_min: >= 0.

    Returns:
        float64 [4, 2, B] and float64 [4, B], on the device of the levels. No gradient reaches the
        levels.

    Raises:
        TypeError: levels that are not float64 tensors.
        ValueError: levels of different shapes or devices, numbers out of range.
    """
    if FAST is not None and not tracing():
        done = FAST(sigma, sigma_next, sigma_data, sigma_min)
        if done is not None:
            return done
    for name, level in (("sigma", sigma), ("sigma_next", sigma_next)):
        kind: object = getattr(level, "dtype", type(level).__name__)
        if kind != torch.float64:
            raise TypeError(f"{name} must be a float64 tensor; got {kind}")
        if level.dim() != 1 or level.shape != sigma.shape:
            raise ValueError(f"{name} must have shape [B], as sigma has; got {list(level.shape)}")
        if level.device != sigma.device:
            raise ValueError(f"{name} must be on the device of sigma; got {level.device}")
    data, least = positive("sigma_data", sigma_data), non_negative("sigma_min", sigma_min)
    found = torch.ops.cmsolvers.consistency_rows(sigma.detach(), sigma_next.detach(), data, least)
    return found[0], found[1]


def consistency_inputs(
    sigma: Tensor,
    sigma_next: Tensor,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    noise_factor: float = 0.0,
) -> tuple[Tensor, ...]:
    """The weights of a consistency pair of which the inputs of the network alone are stored.

    As `consistency_rows`, with c x and c' x' in place of x and x':

    - of the noise: (c, c s), (c', c' s');
    - of the residual: (c_skip / c, c_out, -c_skip' / c', -c_out'), for c x, F, c' x', F';
    - k ln s and k ln s' with k = noise_factor, float32: what the network is told.

    Args:
        sigma: float64 [B], >= 0; not read on the host.
        sigma_next: float64 [B], >= 0, likewise.
        sigma_data: > 0.
        sigma_min: >= 0.
        noise_factor: 0.25 is EDM's; with 0 there are no times.

    Returns:
        float64 [2, 2, B] and float64 [4, B], and the times [B] of both levels, on the device of the
        levels. No gradient reaches the levels.

    Raises:
        TypeError, ValueError: as `consistency_rows`.
    """
    if FAST_INPUTS is not None and not tracing():
        done = FAST_INPUTS(sigma, sigma_next, sigma_data, sigma_min, noise_factor)
        if done is not None:
            return done
    noise, residual = consistency_rows(sigma, sigma_next, sigma_data, sigma_min)
    one = torch.ones_like(residual[0])
    lean = residual / torch.stack((noise[2, 0], one, noise[3, 0], one))
    if noise_factor == 0.0:
        return noise[2:], lean
    told = [(noise_factor * s.detach().log()).float() for s in (sigma, sigma_next)]
    return noise[2:], lean, *told


def alike(a: object, b: object) -> bool:
    """Whether both are plain tensors [B, ...] of one shape, device and floating dtype.

    False says nothing: the checks that come then know what is wrong, if anything is.
    """
    return ALIKE is not None and not tracing() and ALIKE(a, b)


def _plain(
    sigma: Tensor, sigma_next: Tensor, sigma_data: float, sigma_min: float
) -> tuple[Tensor, Tensor]:
    held = rules.held(sigma_min)
    noise, residual = [], []
    for level, sign in ((sigma, 1.0), (sigma_next, -1.0)):
        skip, out, _ = rules.consistency(level, sigma_data, sigma_min, held)
        if sign < 0:
            skip, out = torch.where(level == 0, 1.0, skip), torch.where(level == 0, 0.0, out)
        c_in = rules.edm_input(level, sigma_data)
        noise.append(torch.stack((torch.ones_like(level), level)))
        noise.append(torch.stack((c_in, c_in * level)))
        residual += [sign * skip, sign * out]
    order = (0, 2, 1, 3)
    return torch.stack([noise[j] for j in order]), torch.stack(residual)


def _fake(
    sigma: Tensor, sigma_next: Tensor, sigma_data: float, sigma_min: float
) -> tuple[Tensor, Tensor]:
    batch = sigma.shape[0]
    return sigma.new_empty(4, 2, batch), sigma.new_empty(4, batch)


if C is None:
    library.impl("consistency_rows", _plain, "CompositeExplicitAutograd")

torch.library.register_fake("cmsolvers::consistency_rows", _fake, lib=library)
