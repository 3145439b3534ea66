"""Outputs of users' functions that later calls must not overwrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


class Outputs:
    """Notices functions that return the same memory at every call, and copies for them.

    A captured graph or another runtime has one buffer for its output. The address tells so at the
    second call, when the first output is lost already: so outputs that are needed longer are copied
    until enough calls have shown that addresses change.

    Args:
        depth: calls between an output and its last reader, at most.
    """

    def __init__(self, depth: int) -> None:
        self._young = depth + 2  # calls
        self._held: dict[int, tuple[Tensor, Tensor | None, Callable[[Tensor], object]]] = {}
        self._static = False

    def returned(self, name: str, outs: Sequence[Tensor]) -> None:
        """A function has returned: whatever lay in the same memory is replaced by its copy.

        Raises:
            RuntimeError: there is no copy, since addresses had changed from call to call before.
        """
        self._young -= 1
        for out in outs:
            address = out.data_ptr()
            if not address or address not in self._held:
                continue
            _, copy, replace = self._held.pop(address)
            if copy is None:
                raise RuntimeError(
                    f"{name} must not return memory in which an earlier output of the same run "
                    "lies, or do so from its second call on"
                )
            replace(copy)
            self._static = True

    def hold(self, out: Tensor, replace: Callable[[Tensor], object]) -> Tensor:
        """An output that is read after a later call; `replace` puts its copy where it is read."""
        if self._static:
            return out.clone()
        self._held[out.data_ptr()] = (out, out.clone() if self._young >= 0 else None, replace)
        return out

    def release(self, out: Tensor) -> None:
        """Nothing reads an output any more."""
        self._held.pop(out.data_ptr(), None)

    def clear(self) -> None:
        """Nothing reads any output any more."""
        self._held.clear()
