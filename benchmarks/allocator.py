"""The state of the C library's allocator, which decides what temporaries of a loop cost."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_SETTINGS = {
    # Blocks above 128 KB, glibc's first value, are mapped anew and given back: each costs page
    # faults. A loop is in this state in a process that has freed nothing large before.
    "mapped anew": {_MMAP_THRESHOLD: 1 << 17, _TRIM_THRESHOLD: 1 << 17},
    # What a loop frees is kept for its next step.
    "warm": {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30},
}
STATES = tuple(_SETTINGS)


def put(state: str) -> bool:
    """Put malloc into one of `STATES` for the rest of the process; False where it has none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*pair) for pair in _SETTINGS[state].items())
