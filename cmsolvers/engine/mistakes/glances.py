"""Numbers of tensors that are read without a wait for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def can_be_read(x: Tensor) -> bool:
    """Whether x holds values now: it is no stand-in of a compiler, a transform or a graph."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def root_mean_square(x: Tensor) -> Tensor:
    """Of all entries, a tensor [] in float32 at least; 0 for an empty x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x.detach(), dtype=dtype)
    return norm / math.sqrt(max(x.numel(), 1))


class Glance:
    """Numbers that a device is working on.

    They are copied to the host when the device gets there, and read where they lie: nothing waits,
    and of numbers that have not come yet there is None.

    Args:
        numbers: a small tensor that can be read (`can_be_read`), on the CPU or a CUDA device.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._place = numbers
        if numbers.is_cuda:
            there = torch.full(numbers.shape, math.nan, dtype=numbers.dtype, device="cpu")
            self._place = there.pin_memory()
            self._place.copy_(numbers, non_blocking=True)

    def read(self) -> list[float] | None:
        """The numbers, in one list; None while some are on their way, and where one is NaN."""
        if self._place.device.type != "cpu":
            return None
        found = [float(n) for n in self._place.flatten().tolist()]
        return None if any(map(math.isnan, found)) else found
