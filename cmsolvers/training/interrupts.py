"""Signals during a training: the step that is under way ends first, and a checkpoint is written.

A run that a signal ended leaves `Trainer.run` by KeyboardInterrupt (SIGINT; the command's exit
status is 130) or by SystemExit with status 143 (SIGTERM) or 129 (SIGHUP).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEFAULTS = (signal.default_int_handler, signal.SIG_DFL)


def ended_by(number: int) -> BaseException:
    """What leaves a run that a signal ended."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


class Interrupts(AbstractContextManager["Interrupts"]):
    """A first signal waits for the end of a step, so that checkpoints hold whole steps.

    A second one stops at once. Signals that somebody handles otherwise, or that are ignored, are
    left alone, and so are all of them outside of the main thread.

    Attributes:
        wanted: number of the signal that came, 0 before; of this process until `agree`.
    """

    def __init__(self) -> None:
        self.wanted = 0
        main = threading.current_thread() is threading.main_thread()
        self._mine = {
            number: signal.getsignal(number)
            for number in SIGNALS
            if main and signal.getsignal(number) in _DEFAULTS
        }

    def __enter__(self) -> Self:
        for number in self._mine:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise ended_by(number)
        self.wanted = number

    def counts(self) -> list[float]:
        """One number per signal: 1 for the one that came."""
        return [float(self.wanted == number) for number in SIGNALS]

    def agree(self, sums: Sequence[float]) -> None:
        """Take what came to any of the processes as what came to this one."""
        came = [number for number, count in zip(SIGNALS, sums, strict=True) if count]
        if came and self.wanted not in came:
            self.wanted = came[0]

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self._mine.items():
            signal.signal(number, handler)
        if self.wanted and kind is None:
            raise ended_by(self.wanted)
