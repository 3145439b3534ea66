"""Memory between calls: a run's buffers, and outputs that no later call may overwrite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad


class StaticOutputError(Exception):
    """A function returned the memory of an earlier output that was still needed."""


class Outputs:
    """Notices functions that return the same memory at every call, or copies for them.

    A captured graph or another runtime has one buffer for its output. The address tells so at the
    next call, when the earlier output is lost already: so the run begins anew, with copies. That
    is the same run again, since noise is a function of its seed; where a user's noise sampler or a
    callback would see it, copies are made from the start.

    Args:
        copies: whether every output that is held is copied.
    """

    def __init__(self, *, copies: bool) -> None:
        self._copies = copies
        self._held: dict[int, tuple[int, Tensor]] = {}  # where each output lies, by its id

    def take(self, outs: tuple[Tensor, ...], shown: Tensor, *, held: bool) -> tuple[Tensor, ...]:
        """What one call, of `shown`, returned; `held`: it is read after a later call.

        Raises:
            StaticOutputError: it lies in memory that is held. What returns its input does no harm:
                that stays as it is while outputs of it are held.
        """
        if not (held or self._held):
            return outs
        places = {id(out): (_memory(out), out) for out in outs}
        for place, _ in self._held.values():
            if any(place == new for new, _ in places.values()) and place != _memory(shown):
                raise StaticOutputError
        if held and self._copies:
            return tuple([out.clone() for out in outs])
        if held:
            self._held |= places
        return outs

    def release(self, out: Tensor) -> None:
        """Nothing reads an output any more."""
        self._held.pop(id(out), None)

    def clear(self) -> None:
        """Nothing reads any output any more."""
        self._held.clear()


def watched(*, copies: bool) -> Outputs | None:
    """The outputs of a run; None under a transform, where addresses cannot be asked for."""
    return None if transformed() else Outputs(copies=copies)


def reusable(*, grad: bool, callback: object) -> bool:
    """Whether a run may write to its buffers again.

    Not with derivatives, under transforms, or where a callback may keep what it is shown.
    """
    return not (grad or callback or transformed() or forward_ad._current_level >= 0)


def transformed() -> bool:
    """Whether a torch.func transform or a compiler is at work: buffers must not be reused there."""
    active: Callable[[], bool] = getattr(
        torch._C, "_are_functorch_transforms_active", lambda: False
    )
    return active() or torch.compiler.is_compiling()


def _memory(out: Tensor) -> int:
    """Where the memory begins that a tensor is a view of; its id where it has no elements."""
    return out.untyped_storage().data_ptr() or id(out)
