"""The log density of one step of a stored run, for any network and with derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.options import density_form
from cmsolvers.engine.parts import check_gaussian, history_for, normals_of
from cmsolvers.engine.program import Wants
from cmsolvers.engine.run import machine_of, program_of
from cmsolvers.engine.solver import prepared
from cmsolvers.engine.trace import check_held, state_dtype

_NOT_READ = ("start", "stop", "trajectory", "return_info", "callback", "progress", "check_nan",
             "noise_sampler", "grad", "check")  # fmt: skip


def step_log_prob(
    sampler: Callable[..., Any],
    denoiser: Any,
    x: Tensor,
    x_next: Tensor,
    sigmas: check.Levels,
    i: int,
    *,
    log_prob: str | bool = True,
    **options: Any,
) -> Tensor:
    """Log p(x_next | x) of step i of a sampler with noise, [B], differentiable.

    The step goes from x to a Gaussian whose mean depends on the denoiser: reinforcement learning
    compares the densities that two networks give the same stored states, a ratio of exponentials.
    With the network that made the run and the states of its trajectory, this is row i of
    `info.log_prob`: to the bit for one-step methods and float32 and float64 states, to rounding for
    multistep ones. No noise is drawn, and nothing waits for the device. Autograd follows where it
    is enabled (as it is by default): by the parameters of the network, by x, x_next and
    `extra_args`.

    Args:
        sampler: a solver of the library with fixed steps that adds Gaussian noise, or a
            `functools.partial` of one: `euler_ancestral`, `ddim` with eta > 0, `dpmpp_2m_sde`,
            `flow_sde`, `cps`, `euler_maruyama` on a reverse SDE, ...
        denoiser: as in the sampler (an SDE for a solver in time).
        x: [B, ...], the state at the start of the step.
        x_next: like x, the state at its end.
        sigmas: the levels (or times) of the whole run.
        i: number of the step, from 0.
        log_prob: the form: "sum" (True) with all constants, "mean" over elements, "unnormalised"
            -mean (x_next - mean)^2.
        options: of the sampler, as in the run: eta, extra_args, ...; for a multistep method also
            `history`, what it keeps of the steps before: D of this network at the states there,
            the latest first. Seeds are not read.

    Returns:
        float64 [B], in nats.

    Raises:
        TypeError, ValueError: as the sampler; a step that has no noise, or is not Gaussian; i or
            x_next that does not fit.

    Source: Liu et al., "Flow-GRPO: Training Flow Matching Models via Online RL" (2025), section 4;
    Black et al., "Training Diffusion Models with Reinforcement Learning" (2024), section 4.3.
    """
    for name in _NOT_READ:
        if name in options:
            raise ValueError(
                f"{name} must be left out: step_log_prob does not read it; got {options[name]!r}"
            )
    form = density_form("log_prob", log_prob)
    if not form:
        raise ValueError(f"log_prob must name a form; got {log_prob!r}")
    ready = prepared(sampler, denoiser, x, sigmas, {**options, "log_prob": form})
    index = check.count("i", i, least=0, most=len(ready.traced.steps) - 1)
    part = index, index + 1
    _check_next(x, x_next)
    check_held(ready.traced, x.dtype)
    step = ready.traced.steps[index]
    if not (normals_of(step) or step.churn):
        raise ValueError(
            f"i must be a step with noise; step {index} of {ready.name}, from {step.start:g} to "
            f"{step.to:g}, has none, and so no density (info.log_prob is 0 there)"
        )
    check_gaussian(ready.traced, part, ready.name)
    given = history_for(ready.traced, index, x, ready.options, ready.name)
    ready = replace(ready, options=replace(ready.options, grad=torch.is_grad_enabled()))
    state = state_dtype(x)
    wants = Wants(fused=True, told=x.dtype, density="given")
    program = program_of(ready.traced, ready.denoiser, state, wants, part)
    machine = machine_of(ready, x, program, given=(*given, x_next.to(state)))
    machine.step(index)
    return machine.densities[index]


def _check_next(x: Tensor, x_next: object) -> None:
    found = check.state("x_next", x_next)
    if found.shape != x.shape or found.device != x.device:
        raise ValueError(
            f"x_next must have the shape and device of x, {list(x.shape)} on {x.device}; got "
            f"{list(found.shape)} on {found.device}"
        )
