"""The one loop that runs every sigma-space sampler (see plan.py for what it runs)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.pairing import alike
from cmsolvers.engine.composed_models import model_class
from cmsolvers.engine.launch import BadOutputs, Launcher, NoiseSampler, Recorder, bar
from cmsolvers.engine.path_noise import PathNoise
from cmsolvers.engine.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Keyword arguments that all samplers share; their meaning is told at `euler_pf_ode`."""

    seed: Any
    noise_sampler: NoiseSampler | None
    extra_args: dict[str, Any] | None
    callback: Callable[[dict[str, Any]], Any] | None
    progress: bool
    return_info: bool
    check_nan: bool
    trajectory: Any


_SHARED = {
    "seed": None,
    "noise_sampler": None,
    "extra_args": None,
    "callback": None,
    "progress": False,
    "return_info": False,
    "check_nan": False,
    "trajectory": None,
}


def sampler(function: F) -> F:
    """Show the shared keyword arguments in the signature of a sampler that takes `**options`."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _SHARED.items()
    ]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=own + shared
    )
    return function


@dataclass(frozen=True)
class Info:
    """What a run cost.

    Attributes:
        nfe: evaluations of the model, as used.
        steps: steps taken.
        trajectory: the states asked for, [K, B, ...] in the order they were passed; None if none
            were.
        levels: where those states are: K levels, or times.
    """

    nfe: int
    steps: int
    trajectory: Tensor | None = None
    levels: tuple[float, ...] | None = None


def run(
    plan: Plan,
    denoiser: Any,
    x: Tensor,
    *,
    seed: Any = None,
    noise_sampler: NoiseSampler | None = None,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    progress: bool = False,
    return_info: bool = False,
    check_nan: bool = False,
    trajectory: Any = None,
    **unknown: Any,
) -> Any:
    """Run a plan; the arguments are told at `euler_pf_ode`."""
    if unknown:
        name = next(iter(unknown))
        raise TypeError(f"{plan.name}() got an unexpected keyword argument {name!r}")
    check.state("x", x)
    check.function(plan.argument, denoiser)
    check.optional_function("noise_sampler", noise_sampler)
    check.optional_function("callback", callback)
    extra = check.options("extra_args", extra_args)
    check.flags(progress=progress, return_info=return_info, check_nan=check_nan)
    recorder = Recorder("trajectory", trajectory, plan.visited)
    if plan.brownian and plan.noisy and noise_sampler is None:
        noise_sampler = PathNoise(plan, x, seed)
    launcher = Launcher(
        x,
        seed=seed,
        noisy=plan.noisy,
        noise_sampler=noise_sampler,
        reuse=callback is None,
        second_dtype=getattr(denoiser, "dtype", None) or x.dtype,
    )
    model = model_class(denoiser, plan)(denoiser, x, plan, launcher, extra)
    bad = BadOutputs(x) if check_nan else None
    recorder.add(x)
    with bar(progress, plan.name, len(plan.steps)) as progress_bar:
        evaluation, past = 0, []  # type: int, list[Tensor]
        for i, step in enumerate(plan.steps):
            if step.churn:
                how = {"span": (step.sigma, step.sigma_hat), "draw": i, "keep": past}
                x = model.churn(evaluation, x, step.churn, how)
            outputs: list[Tensor] = []
            y = x
            for stage in step.stages:
                new = model.evaluate(evaluation, y)
                for output in new:
                    launcher.observe(output)
                    if bad is not None:
                        bad.add(evaluation, output)
                if callback is not None and not outputs:
                    callback(
                        {
                            "i": i,
                            "x": x,
                            "sigma": step.sigma,
                            "sigma_hat": step.sigma_hat,
                            "denoised": model.denoised(evaluation, y, new),
                        }
                    )
                outputs += new
                if len(outputs) > 1:
                    outputs = [*alike(outputs, x.dtype)]
                keep = past if stage is step.stages[-1] else [x, *past]
                how = {"span": (step.sigma_hat, stage.to), "draw": i, "keep": keep}
                y, first = model.advance(evaluation, x, stage, outputs, past, how)
                evaluation += 1
            x = y
            recorder.add(x)
            if plan.keep:
                past = [first, *past[: plan.keep - 1]]
            progress_bar.advance("sigma", step.stages[-1].to, evaluation)
    if bad is not None:
        _raise_bad(bad, plan)
    if not (return_info or recorder.wanted):
        return x
    return x, Info(evaluation, len(plan.steps), *recorder.result())


def _raise_bad(bad: BadOutputs, plan: Plan) -> None:
    found = bad.first()
    if found is None:
        return
    evaluation, sample = found
    at = 0
    for i, step in enumerate(plan.steps):
        at += len(step.stages)
        if evaluation < at:
            raise ValueError(
                f"{plan.argument} must return finite values; got NaN or infinity at step {i}, "
                f"sigma {plan.levels[evaluation]:g}, sample {sample}"
            )
