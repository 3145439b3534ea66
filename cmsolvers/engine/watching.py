"""The first run of a denoiser on a grid is looked at, and `mistakes` that show are warned of once.

Nothing waits for the device, and the denoiser is not called once more.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor

from cmsolvers.denoisers.composed import Composed
from cmsolvers.denoisers.preconditioning import Preconditioned
from cmsolvers.engine import mistakes
from cmsolvers.engine.glances import Glance, can_be_read, root_mean_square
from cmsolvers.engine.latest import Latest
from cmsolvers.engine.mistakes import About, Answer
from cmsolvers.processes.elementary import broadcastable

Result = TypeVar("Result")

_MOST = 64  # calls whose answers are looked at
_MOST_LOOKS = 200  # in a process: one that makes a denoiser for every run is not slowed for ever
_LOOKS = count()
_PENDING: deque[_Sizes] = deque(maxlen=8)
_FIRST: Latest[object] = Latest(64)
_WARNED: set[str] = set()


def watched(
    run: Callable[[Any], Result], denoiser: Any, x: Tensor, levels: Sequence[float], about: About
) -> Result:
    """What `run` returns; warns of mistakes once each. Arguments as in `run_checks.looked_at`.

    What a device has not found out by the end of this run is said by a later one.
    """
    if torch.compiler.is_compiling() or not _is_first(denoiser, levels):
        if _PENDING:
            _settle()
        return run(denoiser)
    if not (can_be_read(x) and mistakes.in_karras_coordinates(denoiser)):
        return run(denoiser)
    _warn("levels", mistakes.about_levels(levels))
    if x.numel() < mistakes.LEAST:
        return run(denoiser)
    start, spy = _size(x), _Spy(denoiser) if _is_plain(denoiser) else None
    result = run(spy or denoiser)
    y: Any = result[0] if isinstance(result, tuple) else result
    left, asked = _size(y), spy.glance() if spy else None
    _PENDING.append(_Sizes(start, left, asked, levels[0], about))
    _settle()
    return result


def _is_plain(denoiser: object) -> bool:
    """Whether nothing is known of a denoiser but that it can be called."""
    return not isinstance(denoiser, (Preconditioned, Composed))


class _Spy:
    """A denoiser that a run calls; it measures the first answers."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser, self._answers = denoiser, list[Tensor]()

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Any:
        d = self._denoiser(x, sigma, **extra)
        readable = isinstance(d, Tensor) and d.shape == x.shape and can_be_read(d)
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


def _size(x: Tensor) -> Glance:
    return _glance(root_mean_square(x))


def _glance(numbers: Tensor) -> Glance:
    """NaN is told apart from what has not come yet: it becomes infinity."""
    return Glance(numbers.nan_to_num(nan=math.inf, posinf=math.inf))


@dataclass(frozen=True)
class _Sizes:
    """What was measured in a run, to be judged when it is known."""

    start: Glance
    result: Glance
    asked: Glance | None
    level: float
    about: About

    def judge(self) -> bool:
        """Warn of what is found; whether all of it was known."""
        start, result = self.start.read(), self.result.read()
        asked = self.asked.read() if self.asked is not None else []
        if start is None or result is None or asked is None:
            return False
        _warn("start", mistakes.about_start(start[0], self.level))
        answers = [Answer(*asked[i : i + 3]) for i in range(0, len(asked), 3)]
        wrong = mistakes.about_answers(self.about.model, start[0], answers)
        _warn("answers", wrong)
        if wrong is None and mistakes.ends_clean(start[0], self.level, self.about.end):
            _warn("end", mistakes.about_end(result[0], self.level, self.about.model))
        return True


def _settle() -> None:
    """Judge the runs whose sizes have come."""
    for sizes in list(_PENDING):
        if sizes.judge():
            with suppress(ValueError):  # another thread was here first
                _PENDING.remove(sizes)


def _is_first(denoiser: object, levels: Sequence[float]) -> bool:
    """Whether a run is to be looked at; a method is known by its object, for each is made anew."""
    mine, known = object(), id(denoiser)
    if isinstance(denoiser, MethodType):
        known = hash((id(denoiser.__self__), denoiser.__func__))
    place = (known, len(levels), levels[0], levels[-1])
    return _FIRST.get(place, lambda: mine) is mine and next(_LOOKS) < _MOST_LOOKS


def _warn(kind: str, text: str | None) -> None:
    """Warn of one kind of mistake once, in the user's line."""
    if text is not None and kind not in _WARNED:
        _WARNED.add(kind)
        warnings.warn(text, stacklevel=_frames_to_the_user())


def _frames_to_the_user() -> int:
    """The stacklevel of `_warn` at which the first frame outside of the package stands."""
    depth, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("cmsolvers."):
        depth, frame = depth + 1, frame.f_back
    return max(depth - 1, 1)
