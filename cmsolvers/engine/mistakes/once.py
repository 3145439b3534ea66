"""Warnings that are given once, and numbers that are judged when a device has them."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import deque
from collections.abc import Callable, Hashable

_MOST = 64  # keys
_MOST_PENDING = 8


class Once:
    """What one kind of look remembers; several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.warned: set[str] = set()
        self._lines: set[tuple[str, tuple[str, int]]] = set()
        self._known: dict[Hashable, None] = {}
        self._pending: deque[Callable[[], bool]] = deque(maxlen=_MOST_PENDING)

    @property
    def waits(self) -> bool:
        """Whether something is still to be judged."""
        return bool(self._pending)

    def is_first(self, key: Hashable) -> bool:
        """Whether a key is new, among the last 64."""
        with self._lock:
            new = key not in self._known
            self._known.pop(key, None)
            self._known[key] = None
            if len(self._known) > _MOST:
                del self._known[next(iter(self._known))]
        return new

    def later(self, judge: Callable[[], bool]) -> None:
        """Have `judge` called now and at each later `settle` until it returns True: it knew all."""
        self._pending.append(judge)
        self.settle()

    def settle(self) -> None:
        """Judge what can be judged by now."""
        for _ in range(len(self._pending)):
            try:
                judge = self._pending.popleft()
            except IndexError:  # another thread was here first
                return
            if not judge():
                self._pending.append(judge)

    def warn(self, kind: str, text: str | None) -> None:
        """Warn of one kind of mistake, the first time in a user's line; None is no mistake."""
        if text is None:
            return
        depth, line = _user()
        with self._lock:
            known = (kind, line) in self._lines or len(self._lines) >= _MOST
            self._lines.add((kind, line))
            self.warned.add(kind)
        if not known:
            warnings.warn(text, stacklevel=depth)


def _user() -> tuple[int, tuple[str, int]]:
    """The stacklevel of `warn` for the first frame outside of the package, and its place."""
    depth, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("cmsolvers."):
        depth, frame = depth + 1, frame.f_back
    place = ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    return max(depth - 1, 1), place
