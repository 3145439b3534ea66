"""Results that are kept for the next run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """The results that were used last, by key; several threads may use it.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._known: dict[Hashable, T] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result for a key, made where it is not known."""
        with self._lock:
            found = self._known.pop(key, None)
            if found is not None:
                self._known[key] = found  # the latest one last
                return found
        made = make()
        with self._lock:
            self._known[key] = made
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]
        return made
