"""What forward mode needs under autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NORMS = ("layer_norm", "group_norm", "batch_norm", "instance_norm")
_HALF = (torch.float16, torch.bfloat16)


class FloatNorms(TorchFunctionMode):
    """A block in which normalisation of half precision by float32 weights is done in float32.

    Autocast brings both together. Their sum is rounded to half precision, but torch leaves the
    tangent in float32, and the next layer refuses a tangent that is not of its weights' dtype.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        more = kwargs or {}
        if getattr(func, "__name__", "") not in _NORMS or not args:
            return func(*args, **more)
        x, *rest = args
        others = [t for t in (*rest, *more.values()) if isinstance(t, Tensor)]
        if x.dtype not in _HALF or all(t.dtype is x.dtype for t in others):
            return func(*args, **more)
        return func(x.float(), *rest, **more).to(x.dtype)


@contextmanager
def casts_not_kept() -> Iterator[None]:
    """A block in which autocast keeps no casts of weights.

    Under `torch.no_grad` some versions of torch keep casts without gradient, and a later pass with
    gradient in the same autocast region takes them: its weights get no gradient at all.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
