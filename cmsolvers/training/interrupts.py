"""Ctrl-C during a training: the step that is under way ends first."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from typing import Self


class Interrupts(AbstractContextManager["Interrupts"]):
    """A first Ctrl-C waits for the end of a step, so that checkpoints hold whole steps.

    A second one stops at once.
    """

    def __init__(self) -> None:
        self.wanted = False
        # Whoever handles the signal otherwise, or elsewhere, is left alone.
        self._mine = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )

    def __enter__(self) -> Self:
        if self._mine:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_: object) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def __exit__(self, kind: object, *_: object) -> None:
        if self._mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.wanted and kind is None:
            raise KeyboardInterrupt
