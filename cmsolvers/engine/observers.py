"""What watches a run and what it says: counts, states, outputs that are not finite, a bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
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
        history: what the steps after a run that stopped early read of its steps, the latest first:
            D, or slopes, [B, ...] each. Of one-step methods and whole runs there is none.
        log_prob: float64 [steps, B], log p of each new state given the one before, where it was
            asked for; 0 for a step without noise.
    """

    nfe: int
    steps: int
    trajectory: Tensor | None = field(default=None, repr=False)
    levels: tuple[float, ...] | None = None
    history: tuple[Tensor, ...] = field(default=(), repr=False)
    log_prob: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class AdaptiveInfo:
    """What a run cost, sample by sample.

    Attributes:
        nfe: int64 [B], evaluations of the model that the sample made use of.
        accepted: int64 [B], steps taken.
        rejected: int64 [B], steps tried and given up.
        finished: bool [B], whether the sample reached the end. Only False in a `SolverError`, or
            where nobody looked (masked mode while a graph is captured).
        calls: calls of the model for the whole batch.
        attempts: rounds of the loop: the largest accepted + rejected, or more in masked mode.
        trajectory: the states asked for, [K, B, ...]; None if none were.
        levels: where those states are: K levels, or times.
    """

    nfe: Tensor = field(repr=False)
    accepted: Tensor = field(repr=False)
    rejected: Tensor = field(repr=False)
    finished: Tensor = field(repr=False)
    calls: int
    attempts: int
    trajectory: Tensor | None = field(default=None, repr=False)
    levels: tuple[float, ...] | None = None


class SolverError(RuntimeError):
    """An adaptive run that could not go on; the text names a sample and where it stands.

    Attributes:
        x: [B, ...], the state that each sample reached, in the dtype and layout of the input.
        level, sigma, t: float64 [B], where: sigma of a sigma-space solver, t of a t-space one.
        info: the counts so far.
    """

    def __init__(self, message: str, x: Tensor, level: Tensor, info: AdaptiveInfo) -> None:
        super().__init__(message)
        self.x, self.info = x, info
        self.level = self.sigma = self.t = level


class Recorder:
    """Copies of the states that `trajectory` asks for.

    Args:
        wanted: None or False (nothing), True (every state) or the levels of some of `visited`.
        visited: the level of each state that `add` will be shown, in order.

    Attributes:
        chosen: the levels whose states are recorded.

    Raises:
        TypeError: neither a bool nor a sequence of numbers.
        ValueError: no levels, or one that the run does not visit.
    """

    def __init__(self, wanted: Any, visited: Sequence[float]) -> None:
        self._visited, self._at = visited, 0
        self._states: list[Tensor] = []
        if wanted is None or isinstance(wanted, bool):
            self.chosen = set(visited) if wanted else set()
        else:
            # A level may come as a float32 tensor holds it.
            rounded = {check.as_float32(level): level for level in visited}
            exact = set(visited)
            given = check.floats("trajectory", wanted)
            self.chosen = {w if w in exact else rounded.get(w, w) for w in given}
            if not self.chosen:
                raise ValueError("trajectory must hold at least one level; got none")
        missing = sorted(self.chosen - set(visited))
        if missing:
            raise ValueError(
                f"trajectory must hold levels that the run visits; got {missing[0]!r}, which is "
                f"none of its {len(visited)} from {visited[0]:g} to {visited[-1]:g}"
            )

    @property
    def wanted(self) -> bool:
        """Whether anything is recorded."""
        return bool(self.chosen)

    def add(self, x: Tensor) -> None:
        """The next state."""
        if self._visited[self._at] in self.chosen:
            self._states.append(x.clone())  # the loop may write to its buffer again
        self._at += 1

    def result(self) -> tuple[Tensor | None, tuple[float, ...] | None]:
        """(states [K, B, ...], their levels), or (None, None)."""
        if not self.chosen:
            return None, None
        return torch.stack(self._states), tuple(v for v in self._visited if v in self.chosen)


def not_finite(output: Tensor) -> Tensor:
    """The samples with an entry that is NaN or infinite, bool [B]."""
    rows = output.detach().isfinite().reshape(len(output), math.prod(output.shape[1:]))
    return ~rows.all(1)


class BadOutputs:
    """First evaluation and sample whose model output is not finite, kept on the device.

    Args:
        x: the state.
        said: who must give finite values, for the error.
        coordinate: what a level is called there.
    """

    def __init__(self, x: Tensor, said: str, coordinate: str) -> None:
        self._batch, self._said, self._coordinate = x.shape[0], said, coordinate
        self._first = torch.full((), _NONE_BAD, dtype=torch.int64, device=x.device)
        self._samples = torch.arange(self._batch, device=x.device)

    def add(self, evaluation: int, output: Tensor) -> None:
        """Record one model output; waits for nothing."""
        if output.numel() == 0:
            return
        codes = self._samples + evaluation * self._batch
        codes = torch.where(not_finite(output), codes, _NONE_BAD)
        self._first = torch.minimum(self._first, codes.min())

    def check(self, places: Sequence[tuple[int, float]]) -> None:
        """Raise ValueError if an output was not finite; `places` are (step, level) of all.

        This waits for the device, once.
        """
        code = int(self._first.item())
        if code != _NONE_BAD:
            evaluation, sample = divmod(code, self._batch)
            step, level = places[evaluation]
            raise ValueError(
                f"{self._said} finite values; got NaN or infinity at step {step}, "
                f"{self._coordinate} {level:g}, sample {sample}"
            )


class bar(AbstractContextManager["bar"]):  # noqa: N801  # named as functions like it are
    """A tqdm bar that shows the level and the NFE, or nothing."""

    def __init__(self, progress: bool, name: str, steps: int | None) -> None:
        self._bar: Any = None
        if progress:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=steps, desc=name)

    def advance(self, name: str, level: float, nfe: int) -> None:
        """One step done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{name} {level:.4g}, NFE {nfe}", refresh=False)
            self._bar.update()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
