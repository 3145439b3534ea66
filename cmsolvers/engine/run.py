"""The one loop that runs a sampler on noise levels, once its steps are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.denoisers.composed import signature
from cmsolvers.engine.answers import leaves
from cmsolvers.engine.latest import Latest
from cmsolvers.engine.lower import lower
from cmsolvers.engine.machine import Machine
from cmsolvers.engine.mistakes.watching import unwatched
from cmsolvers.engine.observers import BadOutputs, Info, Recorder, bar
from cmsolvers.engine.options import Fixed, NoiseSampler
from cmsolvers.engine.outputs import StaticOutputError
from cmsolvers.engine.parts import Part, check_gaussian, history_for, part_of, wants_info
from cmsolvers.engine.path_noise import PathNoise
from cmsolvers.engine.program import Program, Wants
from cmsolvers.engine.trace import MOST_STEPS, Trace, check_held, state_dtype
from cmsolvers.ops.keys import draws

Result: TypeAlias = Tensor | tuple[Tensor, Info]
_MOST_PROGRAMS = 64
_PROGRAMS: Latest[Program] = Latest(_MOST_PROGRAMS)


@dataclass(frozen=True)
class Prepared:
    """A run whose steps are known.

    Attributes:
        traced: the steps.
        denoiser: the model.
        options: of the run.
        name: of the solver.
        model: what the model is called in error texts.
        part: the steps that the options ask for.
    """

    traced: Trace
    denoiser: object
    options: Fixed
    name: str
    model: str
    part: Part = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "part", part_of(self.options, len(self.traced.steps)))

    @property
    def levels(self) -> tuple[float, ...]:
        """Where the state is at the start of the part, and after each of its steps."""
        start, stop = self.part
        return self.traced.visited[start : stop + 1]


def run(prepared: Prepared, x: Tensor) -> Result:
    """Run from x."""
    traced, denoiser, options = prepared.traced, prepared.denoiser, prepared.options
    part, levels = prepared.part, prepared.levels
    states = Recorder(options.trajectory, levels).wanted
    check_held(traced, x.dtype)
    if options.log_prob:
        check_gaussian(traced, part, prepared.name)
    given = history_for(traced, part[0], x, options, prepared.name)
    noisy, sampler = bool(traced.normals), options.noise_sampler
    state = state_dtype(x)
    if traced.brownian and noisy and sampler is None:
        sampler = PathNoise(traced, x, options.seed)
    fused, shown = sampler is None, options.callback is not None
    wants = Wants(
        fused=fused,
        told=x.dtype,
        shown=shown,
        states=states,
        history=part[1] < len(traced.steps) and (states or wants_info(options)),
        density="made" if options.log_prob else "",
    )
    program = program_of(traced, denoiser, state, wants, part)
    key = key_of(options.seed, x, needed=noisy and fused)
    start = partial(machine_of, prepared, x, program, given=given, key=key, noise_sampler=sampler)
    result, machine = drive(
        start,
        options,
        x.dtype,
        prepared.name,
        traced.coordinate,
        levels,
        part,
        copies=program.static,
    )
    # Others share a program that is not kept for this model alone.
    program.static = machine.copied and _KEPT.get() is not None
    return result


def machine_of(
    prepared: Prepared,
    x: Tensor,
    program: Program,
    *,
    given: Sequence[Tensor] = (),
    key: noise.Key | None = None,
    noise_sampler: NoiseSampler | None = None,
    copies: bool = False,
) -> Machine:
    """What executes a program of a run from x; the other arguments as in `Machine`."""
    traced, options, model = prepared.traced, prepared.options, prepared.model
    called = leaves(prepared.denoiser, model, options.extra_args or {}, x, traced.maps)
    said = f"{model} must return" if traced.coordinate == "sigma" else "sde must give"
    bad = BadOutputs(x, said, traced.coordinate) if options.check_nan else None
    return Machine(
        program,
        x.to(state_dtype(x)),
        called,
        options,
        key=key,
        noise_sampler=noise_sampler,
        bad=bad,
        copies=copies,
        given=given,
    )


class Going(Protocol):
    """A run under way from the state x."""

    x: Tensor

    @property
    def nfe(self) -> int:
        """Evaluations of the model so far."""

    def step(self, i: int) -> Tensor | None:
        """Run step i; the state after it, where it is made."""

    def check(self) -> None:
        """ValueError if an output was not finite, where that is looked for."""

    def facts(self, first: int, last: int) -> dict[str, Any]:
        """What an `Info` says of these steps besides costs and states."""


G = TypeVar("G", bound=Going)


def drive(
    start: Callable[..., G],
    options: Fixed,
    dtype: torch.dtype,
    name: str,
    coordinate: str,
    levels: Sequence[float],
    part: Part,
    *,
    copies: bool = False,
) -> tuple[Result, G]:
    """All steps of a run; begins anew with copies where outputs turn out to share memory.

    Args:
        start: `start(copies=...)` makes a run.
        options: of the run.
        dtype: of what is returned: that of the user's x.
        name: of the solver.
        coordinate: what a progress bar calls a level.
        levels: the level at the start and after each step.
        part: which steps these are.
        copies: whether outputs are copied from the start. They always are with a callback or a
            noise sampler, which would notice that the run begins anew.
    """
    recorder = Recorder(options.trajectory, levels)
    seen = options.callback is not None or options.noise_sampler is not None
    going = start(copies=copies or seen)
    y: Tensor | None = going.x
    recorder.add(going.x)
    try:
        with bar(options.progress, name, len(levels) - 1) as progress_bar:
            for i, level in enumerate(levels[1:], part[0]):
                y = going.step(i)
                if y is not None:
                    recorder.add(y)
                progress_bar.advance(coordinate, level, going.nfe)
    except StaticOutputError:
        return drive(start, options, dtype, name, coordinate, levels, part, copies=True)
    assert y is not None
    going.check()
    y = y.to(dtype)
    if not (wants_info(options) or recorder.wanted):
        return y, going
    states, at = recorder.result()
    if states is not None and not options.log_prob:
        states = states.to(dtype)
    return (y, Info(going.nfe, len(levels) - 1, states, at, **going.facts(*part))), going


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


def program_of(
    traced: Trace, denoiser: object, dtype: torch.dtype, wants: Wants, part: Part
) -> Program:
    """The program of a run, kept for the next one with the same steps and kind of denoiser.

    The arguments are those of `lower`.
    """

    def make() -> Program:
        return lower(traced, denoiser, dtype, wants, part)

    kept, kind = _KEPT.get(), signature(denoiser)
    if kept is not None:
        return kept.get((traced, id(unwatched(denoiser)), dtype, wants, part), make)
    if kind is None or len(traced.steps) > MOST_STEPS or not traced.path.is_builtin:
        return make()
    return _PROGRAMS.get((traced, kind, dtype, wants, part), make)


def key_of(seed: noise.SeedLike, x: Tensor, *, needed: bool) -> noise.Key | None:
    """The key of a run's noise; a seed that is given is checked even where there is no noise."""
    given = needed or not draws(seed)
    return noise.key(seed, x.shape[0], device=x.device) if given else None
