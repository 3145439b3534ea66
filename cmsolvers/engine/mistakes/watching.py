"""The first run of a denoiser on a grid is looked at, and `mistakes` that show are warned of once.

Nothing waits for the device, and the denoiser is not called once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor

from cmsolvers.denoisers.composed import Composed
from cmsolvers.denoisers.flow_map_base import FlowMap
from cmsolvers.denoisers.preconditioning import Preconditioned
from cmsolvers.engine.mistakes import criteria
from cmsolvers.engine.mistakes.criteria import About, Answer
from cmsolvers.engine.mistakes.glances import Glance, can_be_read, root_mean_square
from cmsolvers.engine.mistakes.once import Once
from cmsolvers.processes.coordinates import Coordinates, coordinates_of
from cmsolvers.processes.elementary import broadcastable

Result = TypeVar("Result")

_MOST = 64  # calls whose answers are looked at
_MOST_LOOKS = 200  # in a process: one that makes a denoiser for every run is not slowed for ever
_LOOKS = count()
ONCE = Once()


def run_watched(
    run: Callable[[Any], Result], denoiser: Any, x: Tensor, levels: Sequence[float], about: About
) -> Result:
    """What `run` returns; warns of mistakes once each. Arguments as in `checked_runs.run_checked`.

    What a device has not found out by the end of this run is said by a later one.
    """
    if torch.compiler.is_compiling() or not _is_first(denoiser, levels):
        if ONCE.waits:
            ONCE.settle()
        return run(denoiser)
    if not can_be_read(x):
        return run(denoiser)
    path = coordinates_of(denoiser)
    if path.karras:
        ONCE.warn("levels", criteria.about_levels(levels))
    if x.numel() < criteria.LEAST:
        return run(denoiser)
    start = _size(x)
    ONCE.later(_Start(start, levels[0], path, about.grid).judge)
    if not path.karras:
        return run(denoiser)
    spy = _Spy(denoiser) if _is_plain(denoiser) and not about.maps else None
    result = run(spy or denoiser)
    y: Any = result[0] if isinstance(result, tuple) else result
    left, asked = _size(y), spy.glance() if spy else None
    ONCE.later(_Sizes(start, left, asked, levels[0], about.end, about.model).judge)
    return result


def _is_plain(denoiser: object) -> bool:
    """Whether nothing is known of a denoiser but that it can be called."""
    return not isinstance(denoiser, (Preconditioned, Composed, FlowMap))


class _Spy:
    """A denoiser that a run calls; it measures the first answers."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser, self._answers = denoiser, list[Tensor]()

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Any:
        d = self._denoiser(x, sigma, **extra)
        readable = isinstance(d, Tensor) and d.shape == x.shape and can_be_read(d)
        readable = readable and d.is_floating_point() and d.device == x.device
        if len(self._answers) < _MOST and readable:
            with torch.no_grad():
                level = sigma.detach().float()
                noise = broadcastable(level, x) * d.detach()
                left = root_mean_square(x.detach() - noise) / root_mean_square(x)
                answer = (level[0], left.float(), root_mean_square(d).float())
                self._answers.append(torch.stack(answer))
        return d

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def glance(self) -> Glance | None:
        """The `Answer`s."""
        return _glance(torch.stack(self._answers)) if self._answers else None


def unwatched(denoiser: object) -> object:
    """What the user gave, where a run calls it through what measures its answers."""
    return denoiser._denoiser if isinstance(denoiser, _Spy) else denoiser


def _size(x: Tensor) -> Glance:
    return _glance(root_mean_square(x))


def _glance(numbers: Tensor) -> Glance:
    """NaN is told apart from what has not come yet: it becomes infinity."""
    return Glance(numbers.nan_to_num(nan=math.inf, posinf=math.inf))


@dataclass(frozen=True)
class _Start:
    """The size of x, to be judged when it is known."""

    size: Glance
    level: float
    path: Coordinates
    grid: str

    def judge(self) -> bool:
        """Warn of what is found; whether it was known."""
        size = self.size.read()
        if size is None:
            return False
        ONCE.warn("start", criteria.about_start(size[0], self.level, self.path, self.grid))
        return True


@dataclass(frozen=True)
class _Sizes:
    """What was measured in a run, to be judged when it is known."""

    start: Glance
    result: Glance
    asked: Glance | None
    level: float
    end: float
    model: str

    def judge(self) -> bool:
        """Warn of what is found; whether all of it was known."""
        start, result = self.start.read(), self.result.read()
        asked = self.asked.read() if self.asked is not None else []
        if start is None or result is None or asked is None:
            return False
        answers = [Answer(*asked[i : i + 3]) for i in range(0, len(asked), 3)]
        wrong = criteria.about_answers(self.model, start[0], answers)
        ONCE.warn("answers", wrong)
        if wrong is None and criteria.ends_clean(start[0], self.level, self.end):
            ONCE.warn("end", criteria.about_end(result[0], self.level, self.model))
        return True


def _is_first(denoiser: object, levels: Sequence[float]) -> bool:
    """Whether a run is to be looked at; a method is known by its object, for each is made anew."""
    known: Hashable = id(denoiser)
    if isinstance(denoiser, MethodType):
        known = id(denoiser.__self__), denoiser.__func__
    return ONCE.is_first((known, len(levels), levels[0], levels[-1])) and next(_LOOKS) < _MOST_LOOKS
