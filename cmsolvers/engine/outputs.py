"""Outputs of users' functions that later calls must not overwrite."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


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
        self._held: dict[int, Tensor] = {}

    def returned(self, outs: Sequence[Tensor], shown: Tensor) -> None:
        """A function of `shown` has returned.

        Raises:
            StaticOutputError: in memory that is held. What returns its input does no harm: that
                stays as it is while outputs of it are held.
        """
        if self._held:
            for out in outs:
                address = _memory(out)
                if address in self._held and address != _memory(shown):
                    raise StaticOutputError

    def hold(self, out: Tensor) -> Tensor:
        """The output, which is read after a later call."""
        if self._copies:
            return out.clone()
        address = _memory(out)
        if address:  # 0 where it has no elements
            self._held[address] = out
        return out

    def release(self, out: Tensor) -> None:
        """Nothing reads an output any more."""
        self._held.pop(_memory(out), None)

    def clear(self) -> None:
        """Nothing reads any output any more."""
        self._held.clear()


def _memory(out: Tensor) -> int:
    """Where the memory begins that a tensor is a view of."""
    return out.untyped_storage().data_ptr()
