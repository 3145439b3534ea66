"""The one loop that runs a sampler on noise levels, once its steps are known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, TypeVar

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
        noisy = bool(traced.normals)
        seen = callback is not None or noise_sampler is not None
        if traced.brownian and noisy and noise_sampler is None:
            noise_sampler = PathNoise(traced, x, seed)
        fused = noise_sampler is None
        program = program_of(
            traced, denoiser, x.dtype, fused=fused, shown=callback is not None, states=states
        )
        bad = BadOutputs(x) if check_nan else None
        start = partial(
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
        y, recorder, machine = drive(
            start,
            record,
            copies=seen or program.static,
            name=name if progress else None,
            coordinate=traced.coordinate,
            ends=traced.visited[1:],
        )
        # Others share a program that is not kept for this model alone.
        program.static = machine.copied and _KEPT.get() is not None
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


class Going(Protocol):
    """A run under way from the state x."""

    x: Tensor

    @property
    def nfe(self) -> int:
        """Evaluations of the model so far."""

    def step(self, i: int) -> Tensor | None:
        """Run step i; the state after it, where it is made."""


G = TypeVar("G", bound=Going)


def drive(
    start: Callable[..., G],
    record: Callable[[], Recorder],
    *,
    copies: bool,
    name: str | None,
    coordinate: str,
    ends: Sequence[float],
) -> tuple[Tensor, Recorder, G]:
    """All steps of a run; begins anew with copies where outputs turn out to share memory.

    Args:
        start: `start(copies=...)` makes a run.
        record: makes a recorder.
        copies: whether outputs are copied from the start.
        name: of a progress bar; None shows none.
        coordinate: what the bar calls a level.
        ends: the level after each step.
    """
    going, recorder = start(copies=copies), record()
    y: Tensor | None = going.x
    recorder.add(going.x)
    try:
        with bar(name is not None, name or "", len(ends)) as progress_bar:
            for i, end in enumerate(ends):
                y = going.step(i)
                if y is not None:
                    recorder.add(y)
                progress_bar.advance(coordinate, end, going.nfe)
    except StaticOutputError:
        return drive(start, record, copies=True, name=name, coordinate=coordinate, ends=ends)
    assert y is not None
    return y, recorder, going


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
