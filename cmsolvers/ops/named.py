"""The steps by name: each is a rule that makes weights of levels (rules.py), and one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers.ops.arguments import check_rule, check_state, check_weight
from cmsolvers.ops.keys import SeedLike
from cmsolvers.ops.rules import (
    CONSISTENCY,
    EDM_INPUT,
    EDM_OUTPUT,
    EULER_MARUYAMA,
    HEUN,
    PF_ODE,
    WEIGHTS,
    Weight,
)
from cmsolvers.ops.step import (
    FAST,
    keyed,
    second_alone,
    step_by_rule,
    tracing,
    usual_out,
    usual_outputs,
    weighted_step,
)


def euler_maruyama_step(
    x: Tensor,
    drift: Tensor,
    diffusion: Weight,
    dt: Weight,
    *,
    seed: SeedLike = None,
    stream: int = 1,
    draw: int = 0,
    offset: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """The Euler-Maruyama step, x' = x + f dt + g sqrt|dt| z.

    Sources: Maruyama (1955); Kloeden and Platen (1992), section 10.2.

    Args:
        x: [B, ...], the state.
        drift: f(x, t), of x's shape.
        diffusion: g(t) >= 0, a number or [B].
        dt: the time step, negative in reverse time, a number or [B].
        seed: of the noise, see `weighted_step`.
        stream: 0..255, see `noise`.
        draw: 0..2^32-1, which draw of the stream.
        offset: sample id of the first row.
        out: where to write; may be x.

    Returns:
        x', as x. Strong order 1 for additive noise, weak order 1.

    Raises:
        TypeError, ValueError: as `weighted_step`.
    """
    return step_by_rule(
        x,
        (drift,),
        EULER_MARUYAMA,
        (diffusion, dt),
        seed=seed,
        stream=stream,
        draw=draw,
        offset=offset,
        out=out,
    )


def pf_ode_step(
    x: Tensor, denoised: Tensor, sigma: Weight, sigma_next: Weight, *, out: Tensor | None = None
) -> Tensor:
    """Euler step of the probability-flow ODE dx/dsigma = (x - D)/sigma.

    x' = (s'/s) x + (1 - s'/s) D (Karras et al. 2022, equation 1 and table 1). Order 1;
    sigma_next = 0 returns D.

    Args:
        x: [B, ...] at noise level sigma, in Karras coordinates.
        denoised: D(x, sigma).
        sigma: > 0, a number or [B].
        sigma_next: >= 0, a number or [B].
        out: where to write; may be x or denoised.

    Returns:
        x at sigma_next.

    Raises:
        TypeError, ValueError: as `weighted_step`; sigma not positive.
    """
    return step_by_rule(x, (denoised,), PF_ODE, (sigma, sigma_next), out=out)


def heun_step(
    x: Tensor,
    denoised: Tensor,
    sigma: Weight,
    sigma_next: Weight,
    denoised_next: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Heun's step of the probability-flow ODE (Karras et al. 2022, algorithm 1), in two calls.

    Without `denoised_next` it is the predictor (the Euler step). With it, the corrector from the
    same x: x' = (s'/s) x + h/2 (1/s' - 2/s) D - h/(2 s') D', h = s' - s. It reads x, D, D' and
    needs no predicted state.

    Args:
        x: [B, ...] at sigma, the state before the predictor.
        denoised: D(x, sigma).
        sigma: > 0, a number or [B].
        sigma_next: a number or [B]; > 0 for the corrector (at 0 the predictor is the step).
        denoised_next: D(predicted x, sigma_next).
        out: where to write; may be x, denoised or denoised_next.

    Returns:
        x at sigma_next. Order 2.

    Raises:
        TypeError, ValueError: as `weighted_step`; a sigma out of range.
    """
    if denoised_next is None:
        return pf_ode_step(x, denoised, sigma, sigma_next, out=out)
    return step_by_rule(x, (denoised, denoised_next), HEUN, (sigma, sigma_next), out=out)


def consistency_output(
    x: Tensor,
    f: Tensor,
    sigma: Weight,
    *,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    out: Tensor | None = None,
) -> Tensor:
    """c_skip x + c_out F of a consistency model (Song et al. 2023, appendix C).

    Exactly x where sigma is sigma_min, or sigma_min rounded to float32, float16 or bfloat16: a
    tensor of levels in these dtypes reaches the boundary.

    Args:
        x: [B, ...], the noisy state.
        f: F, the raw network output, of x's shape.
        sigma: >= 0, a number or [B].
        sigma_data: > 0, standard deviation of the data.
        sigma_min: >= 0, epsilon, the level at which the function is the identity.
        out: where to write; may be x or f.

    Returns:
        The consistency function's value, as x.

    Raises:
        TypeError, ValueError: as `weighted_step`; sigma_data not positive.
    """
    return step_by_rule(x, (f,), CONSISTENCY, (sigma, sigma_data, sigma_min), out=out)


def scale_input(
    x: Tensor, c_in: Weight, *, dtype: torch.dtype | None = None, out: Tensor | None = None
) -> Tensor:
    """c_in x, the network's input, in the network's dtype.

    Args:
        x: [B, ...].
        c_in: a number or [B].
        dtype: of the result; x's by default.
        out: where to write, of that dtype, in x's layout.

    Returns:
        c_in x.

    Raises:
        TypeError, ValueError: as `weighted_step`.
    """
    if FAST is not None and not tracing() and isinstance(x, Tensor):
        done = None
        if dtype is None or dtype == x.dtype:
            done = FAST(x, (), (c_in,), 0.0, None, 0, 0, 0, out)
        elif usual_out(out, dtype):
            where = dtype if out is None else out
            done = FAST(x, (), (0.0,), 0.0, None, 0, 0, 0, False, WEIGHTS, (c_in, 0.0), where)
        if done is not None:
            return done
    _check(x, (), c_in=c_in)
    if dtype is None or dtype == x.dtype:
        return weighted_step(x, (), (c_in,), out=out)
    return second_alone(x, WEIGHTS, (0.0, 0.0, 0.0, 1.0, c_in, 0.0), dtype, out)


def edm_input(
    x: Tensor,
    sigma: Weight,
    sigma_data: float = 0.5,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """c_in x, c_in = 1 / sqrt(sigma^2 + sigma_data^2): the input of a network with EDM scalings.

    Source: Karras et al. (2022), table 1. Exact to rounding for every level; the weight is made in
    float64.

    Args:
        x: [B, ...] at noise level sigma, in Karras coordinates.
        sigma: >= 0, a number or [B].
        sigma_data: > 0, standard deviation of the data.
        dtype: of the result; x's by default.
        out: where to write, of that dtype, in x's layout; may be x where the dtypes are the same.

    Returns:
        c_in x.

    Raises:
        TypeError, ValueError: as `weighted_step`; sigma negative, sigma_data not positive.
    """
    levels = (sigma, sigma_data)
    if dtype is None or dtype == getattr(x, "dtype", None):
        return step_by_rule(x, (), EDM_INPUT, levels, out=out)
    if FAST is not None and not tracing() and usual_out(out, dtype):
        where = dtype if out is None else out
        done = FAST(x, (), levels, 0.0, None, 0, 0, 0, False, EDM_INPUT, 1.0, where)
        if done is not None:
            return done
    check_state(x, ())
    return second_alone(x, EDM_INPUT, check_rule(EDM_INPUT, levels, x), dtype, out)


def edm_output(
    x: Tensor,
    f: Tensor,
    sigma: Weight,
    sigma_data: float = 0.5,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """D = c_skip x + c_out F, the denoiser of a network F with EDM scalings.

    With s = sigma and d = sigma_data: c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2)
    (Karras et al. 2022, table 1), made in float64. At sigma = 0 it is x.

    Args:
        x: [B, ...] at noise level sigma, in Karras coordinates.
        f: F, the raw network output, of x's shape.
        sigma: >= 0, a number or [B].
        sigma_data: > 0, standard deviation of the data.
        out: where to write; may be x or f.

    Returns:
        D(x, sigma), as x.

    Raises:
        TypeError, ValueError: as `weighted_step`; sigma negative, sigma_data not positive.
    """
    return step_by_rule(x, (f,), EDM_OUTPUT, (sigma, sigma_data), out=out)


def add_noise(
    x: Tensor,
    sigma: Weight,
    *,
    alpha: Weight = 1.0,
    sigma_next: Weight | None = None,
    seed: SeedLike = None,
    stream: int = 3,
    draw: int = 0,
    offset: int = 0,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Noisy data, alpha x + sigma z; with `sigma_next` also alpha x + sigma_next z.

    Both have the same z, which consistency training needs.

    Args:
        x: [B, ...], clean data.
        sigma: a number or [B].
        alpha: a number or [B].
        sigma_next: a number or [B], the second level (Song et al. 2023, algorithm 3).
        seed: of the noise, see `weighted_step`.
        stream: 0..255, see `noise`.
        draw: 0..2^32-1, which draw of the stream.
        offset: sample id of the first row.
        out: where to write the first; may be x.

    Returns:
        The noisy data, or the pair.

    Raises:
        TypeError, ValueError: as `weighted_step`.
    """
    second = None if sigma_next is None else (alpha, sigma_next)
    if FAST is not None and not tracing() and usual_outputs(x, out, None, None):
        key, first = keyed(seed, offset)
        done = FAST(x, (), (alpha,), sigma, key, stream, draw, first, out, WEIGHTS, second)
        if done is not None:
            return done
    if sigma_next is None:
        _check(x, (), sigma=sigma, alpha=alpha)
        return weighted_step(
            x, (), (alpha,), w_z=sigma, seed=seed, stream=stream, draw=draw, offset=offset, out=out
        )
    _check(x, (), sigma=sigma, sigma_next=sigma_next, alpha=alpha)
    return weighted_step(
        x,
        (),
        (alpha,),
        w_z=sigma,
        seed=seed,
        stream=stream,
        draw=draw,
        offset=offset,
        second=("pair", alpha, sigma_next),
        out=out,
    )


def _check(x: Tensor, inputs: tuple[Tensor, ...], **numbers: Weight) -> None:
    """Refuse a number under the name that its caller knows, before it has become a weight."""
    check_state(x, inputs)
    for name, value in numbers.items():
        check_weight(name, value, x)
