"""What would wait for a GPU, found on the CPU."""

import traceback
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmsolvers import checks

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
"""Operators that read values on the host."""


class Waits(TorchDispatchMode):
    """Counts the operators that read values on the host, which would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split("::")[-1] in READS
        return func(*args, **(kwargs or {}))


PRETENDED = torch.device("meta")
"""Stands for a GPU: no values can be read there, and what is copied there comes from the host."""


class _Copies(TorchDispatchMode):
    """Notes operators that read values, or that have tensors on two devices."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        name = func.name().split("::")[-1]
        tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
        # A number on the host, a tensor [], is handed to a kernel without a copy.
        copies = name.split(".")[0] in ("_to_copy", "copy_")
        devices = {t.device.type for t in tensors if copies or t.ndim > 0}
        reads = name in (*READS, "masked_select", "repeat_interleave.Tensor")
        if len(devices) > 1 or (reads and any(t.device == PRETENDED for t in tensors)):
            self.found.append(f"{name} {place()}")
        return made


class _Constants(TorchFunctionMode):
    """Notes tensors that are made of values of the host on the device, copies in disguise."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("tensor", "as_tensor", "asarray", "new_tensor"):
            own = isinstance(args[0], Tensor) and func.__name__ != "new_tensor"
            if made.device == PRETENDED and not (own and args[0].device == PRETENDED):
                self.found.append(f"{func.__name__} {place()}")
        return made


def place():
    """The line of the library that runs now."""
    frames = [f for f in traceback.extract_stack() if "cmsolvers/" in f.filename]
    return f"at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


@contextmanager
def pretended_device():
    """A block in which the library takes `PRETENDED` for a device that holds data."""
    own, casts = checks.tensor, torch.is_autocast_enabled
    checks.tensor = lambda name, value: value
    torch.is_autocast_enabled = lambda *kind: False if kind == ("meta",) else casts(*kind)
    try:
        yield
    finally:
        checks.tensor, torch.is_autocast_enabled = own, casts


@contextmanager
def waits_of_a_device():
    """A list of what would wait for the device `PRETENDED` while the block runs.

    Reads of values that leave no operator to be noted are errors of torch.
    """
    found = []
    with pretended_device(), _Constants(found), _Copies(found):
        yield found
