"""Tensors that go together: two calls as one batch, some samples of a batch, one dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.protocol import Arguments, Extra

Weight: TypeAlias = float | Tensor


def asked(weights: Sequence[Weight]) -> tuple[int, ...]:
    """Which sides have a weight; numbers are known to be 0, tensors are not."""
    return tuple(k for k, w in enumerate(weights) if isinstance(w, Tensor) or w != 0.0)


def twice(value: Tensor) -> Tensor:
    """The batch twice, one after the other."""
    return torch.cat((value, value))


def halves(value: Tensor) -> tuple[Tensor, Tensor]:
    """The parts that `twice` put together."""
    batch = value.shape[0] // 2
    return value[:batch], value[batch:]


def alike(outputs: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Outputs in one dtype: as they are, or `dtype` where they differ."""
    if all(m.dtype is outputs[0].dtype for m in outputs):
        return outputs
    return [m.to(dtype) for m in outputs]


def take(value: Any, batch: int, index: Tensor) -> Any:
    """Rows of every tensor of `batch` rows in a nest of dicts, lists and tuples."""
    if isinstance(value, Tensor):
        own = value.dim() > 0 and value.shape[0] == batch
        return value[index.to(value.device)] if own else value
    if isinstance(value, dict):
        return {key: take(entry, batch, index) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(take(entry, batch, index) for entry in value)
    return value


def joined_arguments(first: Extra, second: Extra, batch: int) -> Arguments:
    """Extra arguments of both sides as those of one batch.

    Raises:
        TypeError: what can be no row of a batch; names that are missing on a side.
    """
    alone = sorted(first.keys() ^ second.keys())
    if alone:
        raise TypeError(
            f"{alone[0]} must be given in both conditional and unconditional to be batched; "
            "batched=False calls the denoiser twice"
        )
    return {name: _joined(name, first[name], second[name], batch) for name in first}


def _joined(name: str, a: Any, b: Any, batch: int) -> Any:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return joined_arguments(a, b, batch)
    pair = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
    if pair and a.shape[:1] == (batch,):
        return torch.cat((a, b))
    if a is b or (isinstance(a, (bool, int, float, str)) and a == b):
        return a
    raise TypeError(
        f"{name} must be a tensor of {batch} rows on both sides to be batched, or the same; "
        f"got {check.describe(a)} and {check.describe(b)}; batched=False calls the denoiser twice"
    )
