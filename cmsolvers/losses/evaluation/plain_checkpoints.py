"""Activation checkpoints that are plain calls, where a pass could not be computed again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint

_TORCH: Any = torch.utils.checkpoint
_LOCK = threading.Lock()
_THREAD = threading.local()
_own: dict[str, Any] = {}  # torch's own, while a block is open
_open = 0


class _Reentrant:
    """Stands for torch's autograd.Function of `use_reentrant=True`."""

    @staticmethod
    def apply(run: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if getattr(_THREAD, "depth", 0):
            return run(*args)
        return _own["CheckpointFunction"].apply(run, preserve_rng_state, *args)


def _generator(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Stands for torch's generator of `use_reentrant=False`, which runs to its yield and on."""
    if getattr(_THREAD, "depth", 0):
        yield
        return
    yield from _own["_checkpoint_without_reentrant_generator"](*args, **kwargs)


_STAND_INS = {
    "CheckpointFunction": _Reentrant,
    "_checkpoint_without_reentrant_generator": _generator,
}


@contextmanager
def plain_checkpoints() -> Iterator[None]:
    """A block in which `torch.utils.checkpoint.checkpoint` calls its function, in this thread.

    For forward mode: the reentrant kind is a custom autograd.Function without it; the other kind
    computes its block again in the backward pass, when the tangents are gone. And for a pass whose
    parameters are replaced, which are the module's own again by then. Other threads, and passes
    outside of the block, keep their checkpoints. Where torch has renamed what is replaced here,
    nothing is.
    """
    global _open
    with _LOCK:
        if _open == 0:
            _own.update({n: getattr(_TORCH, n) for n in _STAND_INS if hasattr(_TORCH, n)})
            for name in _own:
                setattr(_TORCH, name, _STAND_INS[name])
        _open += 1
    _THREAD.depth = getattr(_THREAD, "depth", 0) + 1
    try:
        yield
    finally:
        _THREAD.depth -= 1
        with _LOCK:
            _open -= 1
            if _open == 0:
                for name, own in _own.items():
                    setattr(_TORCH, name, own)
