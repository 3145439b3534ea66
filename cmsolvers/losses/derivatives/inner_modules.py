"""The module inside of what wraps it for many devices or a compiler."""

from __future__ import annotations

from copy import copy
from typing import TypeVar, cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from cmsolvers.processes.wrappers import wrapped_in

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
    while isinstance(found, (DataParallel, DistributedDataParallel)) or _compiled(found):
        found = wrapped_in(found)
    return cast(M, found)


def _compiled(model: object) -> bool:
    return isinstance(model, nn.Module) and isinstance(getattr(model, "_orig_mod", None), nn.Module)


def around_inner(model: M) -> M:
    """A flow map or denoiser around `inner(model.net)`: the same one where nothing wraps its net.

    Args:
        model: a module with an attribute `net`.
    """
    net = getattr(model, "net", None)
    bare = inner(net)
    if bare is net or not isinstance(model, nn.Module):
        return model
    other = copy(model)
    other._modules = {**model._modules, "net": cast(nn.Module, bare)}
    return other
