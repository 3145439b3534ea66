"""What the adaptive loop asks of a solver: a step, and its error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.launch import Recorder

Mode: TypeAlias = Literal["compact", "masked"]


@dataclass(frozen=True)
class Trial:
    """A step to try.

    Attributes:
        x: [b, ...], states.
        first: the model's outputs there.
        previous: what the last accepted step left as such, x before; None if not remembered.
        t: float64 [b] on the control device.
        h: float64 [b], signed; t + h is t_next. 0 for a sample that has ended.
        t_next: float64 [b].
        ids: int64 [b], places in the batch.
        accepted: int64 [b], steps so far.
        extra: further keyword arguments for the model.
    """

    x: Tensor
    first: Tensor
    previous: Tensor | None
    t: Tensor
    h: Tensor
    t_next: Tensor
    ids: Tensor
    accepted: Tensor
    extra: dict[str, Any]


class Outcome(NamedTuple):
    """What a trial gave: the new state, its error [b] (1 is the tolerance), what to keep of it."""

    x: Tensor
    error: Tensor
    first: Tensor | None = None
    previous: Tensor | None = None


class Method(ABC):
    """A solver of one step with an error estimate.

    Attributes:
        name: of the solver.
        evaluations: calls of the model in a trial, beside the one at x.
        reuses_last: whether a trial gives the model's output at the new state.
        remembers: whether a trial gives a state that the next one is measured against.
    """

    name: str
    evaluations: int
    reuses_last: bool
    remembers: bool = False

    @abstractmethod
    def first(self, x: Tensor, t: Tensor, extra: dict[str, Any]) -> Tensor:
        """The model's output at x."""

    @abstractmethod
    def attempt(self, trial: Trial) -> Outcome:
        """Try a step."""

    def level(self, t: Tensor) -> Tensor:
        """What users call t: sigma, or t itself."""
        return t

    @abstractmethod
    def shown(self, trial: Trial) -> dict[str, Any]:
        """A callback's view of a trial."""


@dataclass(frozen=True)
class Settings:
    """How a run goes; told at `rk_pf_ode`."""

    max_steps: int
    mode: str
    check_every: int | None
    extra: dict[str, Any]
    callback: Callable[[dict[str, Any]], Any] | None
    progress: bool
    check_nan: bool
    min_factor: float


def read_settings(
    *,
    max_steps: Any,
    mode: Any,
    check_every: Any,
    extra_args: Any,
    callback: Any,
    progress: Any,
    return_info: Any,
    check_nan: Any,
    min_factor: float,
) -> Settings:
    """The shared options, checked."""
    check.flags(progress=progress, return_info=return_info, check_nan=check_nan)
    return Settings(
        max_steps=check.count("max_steps", max_steps),
        mode=check.choice("mode", mode, ("compact", "masked")),
        check_every=None if check_every is None else check.count("check_every", check_every),
        extra=check.options("extra_args", extra_args),
        callback=check.optional_function("callback", callback),
        progress=progress,
        check_nan=check_nan,
        min_factor=min_factor,
    )


def landings(
    levels: tuple[float, ...], trajectory: Any, *, last: int = 1
) -> tuple[tuple[float, ...], Recorder]:
    """Where a run lands, and the recorder of the states there that are wanted.

    These are the first level, the last ones, and those that a trajectory asks for in between.
    """
    recorder = Recorder("trajectory", trajectory, levels)
    chosen: Collection[float] = ()
    if recorder.wanted:
        chosen = levels if trajectory is True else check.floats("trajectory", trajectory)
    between = (level for level in levels[1:-last] if level in chosen)
    visited = (levels[0], *between, *levels[-last:])
    return visited, Recorder("trajectory", trajectory, visited)


def fraction(name: str, value: Any) -> float:
    """A number in (0, 1)."""
    number = check.real(name, value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie in (0, 1); got {number:g}")
    return number


def working(x: Tensor) -> Tensor:
    """X in the dtype that steps are computed in: half precision is widened to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
