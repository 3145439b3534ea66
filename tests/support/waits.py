"""What would wait for a GPU, counted on the CPU."""

from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts the operators that read values on the host, which would wait for a GPU."""

    NAMES = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split("::")[-1] in [n.split(".")[1] for n in self.NAMES]
        return func(*args, **(kwargs or {}))
