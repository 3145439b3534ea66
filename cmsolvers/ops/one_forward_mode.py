"""Torch has one forward mode per process: threads must enter it one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def one_forward_mode() -> Iterator[None]:
    """A block around a `dual_level` or `torch.func.jvp`.

    A second thread that enters a level meanwhile fails, and so does every later one.
    """
    if torch.compiler.is_compiling():
        yield
        return
    with _LOCK:
        yield
