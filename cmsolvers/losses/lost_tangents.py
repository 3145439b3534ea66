"""Finds where a network drops the tangents of forward mode, which torch does without a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cmsolvers import checks as check
from cmsolvers.losses.module_names import place_of_call

_CONSTANTS = ("_like", "new_")  # zeros_like, new_ones: made like a tensor, not of it
_STAIRS = ("round", "floor", "ceil", "trunc", "fix")
_TO_INTEGERS = ("long", "int", "short", "to", "type", "type_as")
_TO_NUMBERS = ("item", "tolist", "__float__", "numpy", "__array__")
_HALF = (torch.float16, torch.bfloat16)
_MOST = 3
ROUNDED = "levels are rounded"
"""How a note on levels begins that lose their digits before they are embedded."""


class LostTangents(TorchFunctionMode):
    """A block that notes each function of torch whose input has a tangent and whose output none.

    A custom op without autograd, `detach`, `.data`, `.item()` and integer timesteps all give a
    derivative of zero in forward mode. It also notes levels, one number per sample, that are
    rounded or cast to half precision.

    Args:
        batch: the number of samples.

    Attributes:
        notes: what was found, as phrases such as "detach in Embedding 'time' of DiT".
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.notes: dict[str, None] = {}
        self._batch = batch

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if len(self.notes) < _MOST:
            moving = [t for t in _tensors((args, kwargs or {})) if check.carries_tangent(t)]
            phrase = self._phrase(_name(func), moving, result) if moving else None
            if phrase is not None:
                self.notes[f"{phrase} {place_of_call()}"] = None
        return result

    def _phrase(self, name: str, moving: list[Tensor], result: object) -> str | None:
        """What a call did to tangents, or None."""
        if name in _STAIRS:
            few = isinstance(result, Tensor) and result.numel() == self._batch
            return f"{ROUNDED} by {name}" if few else f"{name} has no slope"
        if not isinstance(result, Tensor):
            return f"tangents end at {name}" if name in _TO_NUMBERS else None
        if not result.is_floating_point():
            return f"tangents end at {name} to integers" if name in _TO_INTEGERS else None
        if check.carries_tangent(result):
            few = result.numel() == self._batch and result.dtype in _HALF
            coarse = few and moving[0].dtype not in _HALF
            return f"{ROUNDED} to {str(result.dtype)[6:]}" if coarse else None
        constant = any(part in name for part in _CONSTANTS)
        return None if constant else f"tangents end at {name}"


def _name(func: Any) -> str:
    """A function's name; of a property (`x.data`) that of the property."""
    name = str(getattr(func, "__name__", func))
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return str(func) if isinstance(func, torch._ops.OpOverload) else name


def _tensors(values: object) -> Iterator[Tensor]:
    """The tensors among arguments, in lists and dicts too."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(values.values())
    elif isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        for value in values:
            yield from _tensors(value)
