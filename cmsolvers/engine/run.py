"""The one loop that runs a sampler on noise levels, once its steps are known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.checks import Levels
from cmsolvers.denoisers.composed import signature
from cmsolvers.engine.answers import leaves
from cmsolvers.engine.latest import Latest
from cmsolvers.engine.lower import lower
from cmsolvers.engine.machine import Machine, NoiseSampler
from cmsolvers.engine.observers import BadOutputs, Info, Recorder, bar
from cmsolvers.engine.outputs import StaticOutputError
from cmsolvers.engine.path_noise import PathNoise
from cmsolvers.engine.program import Program
from cmsolvers.engine.trace import Trace

_MOST_PROGRAMS, _MOST_STEPS = 64, 1024
_PROGRAMS: Latest[Program] = Latest(_MOST_PROGRAMS)


def run(
    traced: Trace,
    denoiser: object,
    x: Tensor,
    *,
    name: str,
    model: str,
    seed: noise.SeedLike,
    noise_sampler: NoiseSampler | None,
    extra_args: dict[str, Any] | None,
    callback: Callable[[dict[str, Any]], object] | None,
    progress: bool,
    return_info: bool,
    check_nan: bool,
    trajectory: Levels | bool | None,
    grad: bool,
) -> Tensor | tuple[Tensor, Info]:
    """Run a trace; the options are documented in `options.SHARED`, and checked."""
    record = partial(Recorder, "trajectory", trajectory, traced.visited)
    states = record().wanted  # checks the argument before anything else is done
    with gradients(x, name, grad):
        noisy = traced.noisy
        seen = callback is not None or noise_sampler is not None
        if traced.brownian and noisy and noise_sampler is None:
            noise_sampler = PathNoise(traced, x, seed)
        fused = noise_sampler is None
        program = program_of(
            traced, denoiser, x.dtype, fused=fused, shown=callback is not None, states=states
        )
        bad = BadOutputs(x) if check_nan else None
        machine = partial(
            Machine,
            program,
            x,
            leaves(denoiser, model, extra_args or {}, x),
            key=key_of(seed, x, needed=noisy and fused),
            noise_sampler=noise_sampler,
            callback=callback,
            bad=bad,
            grad=grad,
        )
        try:
            y, recorder = _steps(
                traced, machine(copies=seen or program.static), record(), name if progress else None
            )
        except StaticOutputError:
            program.static = _KEPT.get() is not None  # others share a program that is not kept
            y, recorder = _steps(traced, machine(copies=True), record(), name if progress else None)
        if bad is not None:
            said = f"{model} must return" if traced.coordinate == "sigma" else "sde must give"
            bad.check(said, traced.coordinate, program.places)
        if not (return_info or recorder.wanted):
            return y
        return y, Info(len(program.places), len(traced.steps), *recorder.result())


def gradients(x: Tensor, name: str, grad: bool) -> AbstractContextManager[object]:
    """The context of a run: without autograd unless that is wanted, and a warning for x."""
    if grad:
        return nullcontext()
    if x.requires_grad and torch.is_grad_enabled():
        warnings.warn(
            f"x requires a gradient, but {name} runs without autograd; grad=True records the run",
            stacklevel=5,
        )
    return torch.no_grad()


def _steps(
    traced: Trace, machine: Machine, recorder: Recorder, name: str | None
) -> tuple[Tensor, Recorder]:
    """All steps; `name` is that of a progress bar."""
    y: Tensor | None = machine.x
    recorder.add(machine.x)
    done = 0
    with bar(name is not None, name or "", len(traced.steps)) as progress_bar:
        for i, step in enumerate(traced.steps):
            y = machine.step(i)
            if y is not None:
                recorder.add(y)
            done += len(step.asks)
            progress_bar.advance(traced.coordinate, step.to, done)
    assert y is not None
    return y, recorder


_KEPT: ContextVar[Latest[Program] | None] = ContextVar("kept programs", default=None)


@contextmanager
def keeping_programs() -> Iterator[Latest[Program]]:
    """Within it a run on the same denoiser has the same program, with the same tensors in it."""
    programs: Latest[Program] = Latest(_MOST_PROGRAMS)
    token = _KEPT.set(programs)
    try:
        yield programs
    finally:
        _KEPT.reset(token)


def program_of(traced: Trace, denoiser: object, dtype: torch.dtype, **wanted: bool) -> Program:
    """The program of a run, kept for the next one with the same steps and kind of denoiser.

    Args:
        traced: the steps.
        denoiser: the model.
        dtype: of the states.
        wanted: further arguments of `lower`.
    """

    def make() -> Program:
        return lower(traced, denoiser, dtype, **wanted)

    kept, kind = _KEPT.get(), signature(denoiser)
    if kept is not None:
        return kept.get((traced, id(denoiser), dtype, *wanted.items()), make)
    if kind is None or len(traced.steps) > _MOST_STEPS:
        return make()
    return _PROGRAMS.get((traced, kind, dtype, *wanted.items()), make)


def key_of(seed: noise.SeedLike, x: Tensor, *, needed: bool) -> noise.Key | None:
    """The key of a run's noise; a seed that is given is checked even where there is no noise."""
    drawn = seed is None or isinstance(seed, torch.Generator)
    return noise.key(seed, x.shape[0], device=x.device) if needed or not drawn else None
