"""Where in a network something happened: the modules whose calls are under way."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType, TracebackType

from torch import nn


def place_of_error(traceback: TracebackType | None) -> str:
    """The innermost module of a traceback: "in Attention 'blocks.3.attn' of DiT"."""
    frames: list[FrameType] = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return _place(frames)


def place_of_call() -> str:
    """The innermost module that is being called now, in the same words."""
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return _place(reversed(frames))


def _place(frames: Iterable[FrameType]) -> str:
    """The last module among frames, outermost first, by its name in the first that holds it."""
    found = [frame.f_locals.get("self") for frame in frames]
    modules = [module for module in found if isinstance(module, nn.Module)]
    if not modules:
        return "in the function itself"
    inner = modules[-1]
    for root in modules:
        for name, module in root.named_modules():
            if module is inner and name:
                return f"in {type(inner).__name__} {name!r} of {type(root).__name__}"
    return f"in {type(inner).__name__}"
