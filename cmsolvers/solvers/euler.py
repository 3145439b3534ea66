"""Euler's method for the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Churn, Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack


def euler_stages(levels: Sequence[float], to: float) -> tuple[Stage, ...]:
    """X' = (s'/s) x + (1 - s'/s) D."""
    s = levels[-1]
    return (Stage(to, to / s, ((s - to) / s,)),)


def churn_of(s_churn: float, s_tmin: float, s_tmax: float) -> Churn | None:
    """EDM's noise before each step, checked; None where it is off."""
    churn = Churn(
        check.non_negative("s_churn", s_churn),
        check.non_negative("s_tmin", s_tmin),
        check.non_negative("s_tmax", s_tmax, infinite=True),
    )
    return churn if churn.s_churn else None


@described(
    order="1", nfe="n", noise="churn", source="Karras et al. (2022), algorithm 2 without correction"
)
@sampler
def euler_pf_ode(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """Euler's method on dx/dsigma = (x - D)/sigma: order 1, one evaluation a step.

    Args:
        denoiser: `D(x, sigma, **extra_args) -> x0`, sigma of shape [B] in the dtype of x. For a
            `Preconditioned` one the loop calls the network itself and folds the rest into the step.
            Its output has the dtype of x or a floating one of lower precision, and must stay as it
            is while it is needed: Heun reads it after the second call, a multistep method of p
            outputs up to p - 1 steps later. So a model must not return one buffer of its own again
            and again. It must not write to its arguments; x is a buffer of the loop, so clone it to
            keep it.
        x: [B, ...] at level sigmas[0], in Karras coordinates; float64, float32, float16, bfloat16.
            Never written to.
        sigmas: strictly descending, at least two, the last may be 0; a tensor or a sequence. Read
            once and kept in float64 on the host.
        s_churn: how much noise EDM adds, over all steps; 0 is the ODE.
        s_tmin: smallest level with churn.
        s_tmax: largest level with churn.
        s_noise: factor on the noise.
        seed: an int in [0, 2^64), an int64 tensor [B] (one a sample), a torch.Generator, None, or a
            `noise.Key`. Step i uses draw i of stream 1.
        noise_sampler: `noise_sampler(sigma, sigma_next) -> Tensor`, unit normal in the shape of x,
            in place of the built-in noise; churn asks for (sigma, sigma_hat).
        extra_args: further keyword arguments for the denoiser.
        callback: called once a step, after its first evaluation, with dict(i, x, sigma, sigma_hat,
            denoised); levels are floats, x is the state at sigma_hat. What it raises ends the run.
        progress: show a bar with the level and the NFE.
        return_info: return (x, Info).
        check_nan: raise ValueError at the end of the run if a model output was not finite, naming
            step, sigma and sample; nothing waits for the device before.
        trajectory: True for the state at every level, or the levels (some of `sigmas`) whose states
            are wanted. They are copied to `info.trajectory`, [K, B, ...], with `info.levels` beside
            them, and (x, info) is returned.

    Returns:
        x at sigmas[-1], in the dtype, layout and device of x; with `return_info` or `trajectory`
        also an `Info`. Differentiable in x and the model where gradients are on.

    Raises:
        TypeError: an argument of the wrong kind; a model that returns no floating tensor of at most
            the precision of x.
        ValueError: levels that are not finite and descending or leave [1e-50, 1e50], numbers out
            of range, a model that returns another shape or device.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), algorithm 2 without its correction.
    """
    churn = churn_of(s_churn, s_tmin, s_tmax)
    plan = make_plan(
        "euler_pf_ode",
        check.sigmas("sigmas", sigmas),
        euler_stages,
        churn=churn,
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)
