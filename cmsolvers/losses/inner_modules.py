"""The module inside of what wraps it for many devices or a compiler."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

M = TypeVar("M")


def inner(model: M) -> M:
    """The module inside of DistributedDataParallel, DataParallel and torch.compile.

    Passes without gradient go to it: nothing has to be synchronised for them, so buffers need not
    be sent and the wrapper's record of the pass with gradient stays as it is. A pass *with*
    gradient must go through the wrapper; without it no gradient is averaged over processes.
    FSDP2 has no wrapper and FSDP's own must gather the weights, so both stay as they are.

    Args:
        model: a module; another callable is returned as it is.
    """
    found: object = model
    while True:
        if isinstance(found, (DataParallel, DistributedDataParallel)):
            found = found.module
        elif isinstance(found, nn.Module) and isinstance(
            getattr(found, "_orig_mod", None), nn.Module
        ):
            found = found._orig_mod
        else:
            return found  # type: ignore[return-value]
