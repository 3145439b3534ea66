"""Ctrl-C while the command starts: one line and status 130, not the traceback of an import."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""The exit status after Ctrl-C, as a shell has it."""


def _is_command() -> bool:
    """Whether Python was started as `cmsolvers ...` or `python -m cmsolvers ...`."""
    words = sys.orig_argv[1:]
    if "-m" in words:
        return words[words.index("-m") + 1 : words.index("-m") + 2] == ["cmsolvers"]
    return bool(words) and os.path.basename(words[0]) == "cmsolvers"


def _stop(number: int, frame: FrameType | None) -> None:
    # Not an exception: half-imported modules catch those, and end otherwise.
    os.write(2, b"cmsolvers: stopped\n")
    os._exit(INTERRUPTED)


def quiet_interrupts() -> None:
    """Until `restore_interrupts`, end at once on Ctrl-C; only in the command's own process."""
    main = threading.current_thread() is threading.main_thread()
    if main and _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


quiet_interrupts()


def restore_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
