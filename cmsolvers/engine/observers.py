"""What watches a run: counts, states asked for, outputs that are not finite, a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check

_NONE_BAD = torch.iinfo(torch.int64).max


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


class Recorder:
    """Copies of the states that `trajectory` asks for.

    Args:
        name: of the argument, for error texts.
        wanted: None or False (nothing), True (every state) or the levels of some of `visited`.
        visited: the level of each state that `add` will be shown, in order.

    Raises:
        TypeError: neither a bool nor a sequence of numbers.
        ValueError: no levels, or one that the run does not visit.
    """

    def __init__(self, name: str, wanted: Any, visited: Sequence[float]) -> None:
        self._visited, self._at = visited, 0
        self._states: list[Tensor] = []
        if wanted is None or isinstance(wanted, bool):
            chosen = set(visited) if wanted else set()
        else:
            chosen = set(check.floats(name, wanted))
            if not chosen:
                raise ValueError(f"{name} must hold at least one level; got none")
        missing = sorted(chosen - set(visited))
        if missing:
            raise ValueError(
                f"{name} must hold levels that the run visits; got {missing[0]!r}, which is none "
                f"of its {len(visited)} from {visited[0]:g} to {visited[-1]:g}"
            )
        self._chosen = chosen

    @property
    def wanted(self) -> bool:
        """Whether anything is recorded."""
        return bool(self._chosen)

    def add(self, x: Tensor) -> None:
        """The next state."""
        if self._visited[self._at] in self._chosen:
            self._states.append(x.clone())  # the loop may write to its buffer again
        self._at += 1

    def result(self) -> tuple[Tensor | None, tuple[float, ...] | None]:
        """(states [K, B, ...], their levels), or (None, None)."""
        if not self._chosen:
            return None, None
        return torch.stack(self._states), tuple(v for v in self._visited if v in self._chosen)


class BadOutputs:
    """First evaluation and sample whose model output is not finite, kept on the device."""

    def __init__(self, x: Tensor) -> None:
        self._batch = x.shape[0]
        self._first = torch.full((), _NONE_BAD, dtype=torch.int64, device=x.device)
        self._samples = torch.arange(self._batch, device=x.device)

    def add(self, evaluation: int, output: Tensor) -> None:
        """Record one model output; waits for nothing."""
        if output.numel() == 0:
            return
        bad = ~torch.isfinite(output.detach()).reshape(self._batch, -1).all(1)
        codes = torch.where(bad, self._samples + evaluation * self._batch, _NONE_BAD)
        self._first = torch.minimum(self._first, codes.min())

    def first(self) -> tuple[int, int] | None:
        """(evaluation, sample) of the first bad output, or None; the only wait for the device."""
        code = int(self._first.item())
        return None if code == _NONE_BAD else divmod(code, self._batch)

    def check(self, said: str, coordinate: str, places: Sequence[tuple[int, float]]) -> None:
        """Raise ValueError if an output was not finite; `places` are (step, level) of all."""
        found = self.first()
        if found is not None:
            step, level = places[found[0]]
            raise ValueError(
                f"{said} finite values; got NaN or infinity at step {step}, "
                f"{coordinate} {level:g}, sample {found[1]}"
            )


class _NoBar(AbstractContextManager["_NoBar"]):
    def advance(self, name: str, level: float, nfe: int) -> None:
        """Nothing."""

    def __exit__(self, *_: object) -> None:
        return None


class _Bar(AbstractContextManager["_Bar"]):
    def __init__(self, name: str, steps: int | None) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=steps, desc=name)

    def advance(self, name: str, level: float, nfe: int) -> None:
        """One step done."""
        self._bar.set_postfix_str(f"{name} {level:.4g}, NFE {nfe}", refresh=False)
        self._bar.update()

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def bar(progress: bool, name: str, steps: int | None) -> _Bar | _NoBar:
    """A tqdm bar that shows the level and the NFE, or nothing."""
    return _Bar(name, steps) if progress else _NoBar()
