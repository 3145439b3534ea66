"""What `torch.vmap` does with the operators: its dimension joins the batch, or it is refused.

Samples are independent in every operator without noise, so V batches of B samples are one batch of
V B. Noise belongs to sample ids, which vmap hides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

# They define the operators that the rules are for.
from cmsolvers.ops import distance, ema_update, noise_sum, noising  # noqa: F401
from cmsolvers.ops.registration import library, step_one, step_two


class _Batches(Protocol):
    """What vmap tells a rule."""

    @property
    def batch_size(self) -> int: ...


_Dim: TypeAlias = int | None
"""Where vmap's dimension is; None: the tensor has none."""


def _front(value: Tensor, dim: _Dim, size: int) -> Tensor:
    """[V, ...]."""
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _all_front(values: Sequence[Tensor], dims: Sequence[_Dim], size: int) -> list[Tensor]:
    return [_front(value, dim, size) for value, dim in zip(values, dims, strict=True)]


def _joined(front: Tensor, batch_dim: int = 0) -> Tensor:
    """[V, B, ...] as [V B, ...]; with batch_dim = 1, [V, K, B] as [K, V B]."""
    return front.movedim(0, batch_dim).flatten(batch_dim, batch_dim + 1)


def _step(
    info: _Batches,
    in_dims: tuple[_Dim, Sequence[_Dim], object, Sequence[_Dim], *tuple[object, ...]],
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
    *second: object,
) -> tuple[Tensor, int] | tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Only where an argument is a tensor of several values does the dimension join the batch."""
    if noise:
        raise RuntimeError(
            "vmap over a step with noise is not supported: its values belong to sample ids, "
            "which vmap hides; call the step on the whole batch"
        )
    size = info.batch_size
    x = _front(x, in_dims[0], size)
    inputs = _all_front(inputs, in_dims[1], size)
    shape = x.shape
    if any(d is not None or t.numel() != 1 for t, d in zip(tensors, in_dims[3], strict=True)):
        if x.dim() > 1:  # else V samples without a batch, which are a batch already
            x, inputs = _joined(x), [_joined(m) for m in inputs]
        batch = len(x) // size if size else 0
        columns = [t.reshape(size, -1) for t in _all_front(tensors, in_dims[3], size)]
        tensors = [_joined(column.expand(size, batch)) for column in columns]
    common = (x, inputs, numbers, tensors, places, rule, noise, key, clamp)
    if second:
        return tuple(t.reshape(shape) for t in step_two(*common, *second)), (0, 0)
    return step_one(*common).reshape(shape), 0


def _rows(weights: Tensor, dim: _Dim, size: int, batch: int) -> Tensor:
    """Weights [V, K, B or 1] as [K, V B]."""
    front = _front(weights, dim, size)
    return _joined(front.expand(size, front.shape[1], batch), 1)


def _distance(
    info: _Batches,
    in_dims: Any,
    inputs: Sequence[Tensor],
    weights: Tensor,
    kind: int,
    c: float,
) -> tuple[Tensor, int]:
    size = info.batch_size
    merged = [_joined(m) for m in _all_front(inputs, in_dims[0], size)]
    batch = len(merged[0]) // size if size else 0
    rows = _rows(weights, in_dims[1], size, batch)
    return torch.ops.cmsolvers.form_distance(merged, rows, kind, c).reshape(size, batch), 0


def _distance_backward(
    info: _Batches,
    in_dims: Any,
    grad: Tensor,
    inputs: Sequence[Tensor],
    weights: Tensor,
    value: Tensor,
    kind: int,
    c: float,
    wanted: Sequence[bool],
) -> tuple[list[Tensor], list[int]]:
    size = info.batch_size
    merged = [_joined(m) for m in _all_front(inputs, in_dims[1], size)]
    batch = len(merged[0]) // size if size else 0
    grads = torch.ops.cmsolvers.form_distance_backward(
        _joined(_front(grad, in_dims[0], size)),
        merged,
        _rows(weights, in_dims[2], size, batch),
        _joined(_front(value, in_dims[3], size)),
        kind,
        c,
        wanted,
    )
    return [g.reshape(size, batch, *g.shape[1:]) for g in grads], [0] * len(grads)


def _refused(what: str, why: str) -> Callable[..., Any]:
    def rule(info: object, in_dims: object, *arguments: object) -> Any:
        raise RuntimeError(f"vmap over {what} is not supported: {why}")

    return rule


_HIDDEN = "values belong to sample ids, which vmap hides; ask for the whole batch"

_RULES: dict[str, Callable[..., Any]] = {
    "weighted_step": _step,
    "weighted_step_two": _step,
    "weighted_step_out": _refused("a step with out=", "leave out= away"),
    "form_distance": _distance,
    "form_distance_backward": _distance_backward,
    "noise_forms": _refused("forms of noise", f"their {_HIDDEN}"),
    "noise_sum": _refused("a sum of noise", f"its {_HIDDEN}"),
    "ema_update": _refused("ema_update", "call it on the whole tensors"),
}

for _name, _rule in _RULES.items():
    torch.library.register_vmap(f"cmsolvers::{_name}", _rule, lib=library)
