"""The size, per sample, of a weighted sum of tensors that is never stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from cmsolvers.checks import as_float, choice
from cmsolvers.ops.arguments import check_rows, check_tensor
from cmsolvers.ops.binary import C
from cmsolvers.ops.registration import library
from cmsolvers.ops.step import tracing

MAX_TERMS = 6
KINDS = ("square", "abs", "huber", "pseudo_huber")
SQUARE, ABS, HUBER, PSEUDO_HUBER = range(4)
_CODES = {kind: code for code, kind in enumerate(KINDS)}
SMALLEST, LARGEST = 1e-15, 1e15
"""Bounds of c where it is not 0: its square is a normal number of float32."""

Kind: TypeAlias = Literal["square", "abs", "huber", "pseudo_huber"]

FAST: Callable[..., Tensor | None] | None = None if C is None else C.fast_form_distance
"""fast_form_distance(inputs, weights, kind, c), positional only, the kind as a number: the plain
case straight into the kernel and autograd; None in every other case."""

library.define("form_distance(Tensor[] inputs, Tensor weights, int kind, float c) -> Tensor")
library.define(
    "form_distance_backward(Tensor grad, Tensor[] inputs, Tensor weights, Tensor value, int kind, "
    "float c, bool[] wanted) -> Tensor[]"
)


def form_distance(
    inputs: Sequence[Tensor], weights: Tensor, kind: Kind = "square", c: float = 0.0
) -> Tensor:
    """The size of r = sum_k weights[k] inputs[k], one number per sample, in one launch.

    r is made in float32 (float64 where an input is) with fused multiply-adds and never stored; sums
    over the elements of a sample are float64 and depend on nothing but that sample. The derivative
    makes r again and writes the gradients of those inputs that require one.

    - "square": sum r^2.
    - "abs": sum |r|.
    - "huber": sum (sqrt(r^2 + c^2) - c), element by element.
    - "pseudo_huber": sqrt(sum r^2 + c^2) - c, of the whole sample (Song & Dhariwal 2023, eq. 8).

    Where the terms nearly cancel, r carries the rounding of the largest: about 2^-24 sum_k |w_k
    m_k| beside what 16-bit inputs have lost before.

    Args:
        inputs: one to six tensors [B, ...] of one shape and device, each float64, float32, float16
            or bfloat16.
        weights: float64 [K, B] or [K, 1] on their device. A weight of 0 drops its term. Constants.
        kind: what is summed.
        c: 0, or in [1e-15, 1e15]; read for "huber" and "pseudo_huber", in units of r. With 0 these
            are "abs" and the root of "square".

    Returns:
        float64 [B]; differentiable in the inputs, twice and in forward mode too. At r = 0 the
        derivative of |r|, and of a root without c, is 0.

    Raises:
        TypeError: something that is not a tensor, a dtype that is not taken.
        ValueError: shapes, devices, weights that require a gradient, an unknown kind, c out of
            range.
    """
    if FAST is not None and not tracing():
        done = FAST(inputs, weights, _CODES.get(kind), c)
        if done is not None:
            return done
    code = KINDS.index(choice("kind", kind, KINDS))
    c = as_float("c", c)
    if c != 0.0 and not SMALLEST <= c <= LARGEST:
        raise ValueError(f"c must be 0 or lie in [{SMALLEST:g}, {LARGEST:g}]; got {c}")
    _check_inputs(inputs)
    check_rows("weights", weights, inputs[0], len(inputs[0]))
    if weights.dim() != 2 or weights.shape[0] != len(inputs):
        raise ValueError(
            f"weights must have shape [{len(inputs)}, {len(inputs[0])}] or [{len(inputs)}, 1]; "
            f"got {list(weights.shape)}"
        )
    found: Tensor = torch.ops.cmsolvers.form_distance(list(inputs), weights, code, c)
    return found


def _check_inputs(inputs: Sequence[Tensor]) -> None:
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"inputs must be a list or tuple of tensors; got {type(inputs).__name__}")
    if not 1 <= len(inputs) <= MAX_TERMS:
        raise ValueError(f"inputs must hold 1 to {MAX_TERMS} tensors; got {len(inputs)}")
    for k, m in enumerate(inputs):
        check_tensor(f"inputs[{k}]", m)
        if m.dim() == 0:
            raise ValueError(f"inputs[{k}] must have a batch dimension, [B, ...]; got shape []")
        if m.shape != inputs[0].shape:
            raise ValueError(
                f"inputs[{k}] must have the shape of inputs[0], {list(inputs[0].shape)}; "
                f"got {list(m.shape)}"
            )
        if m.device != inputs[0].device:
            raise ValueError(
                f"inputs[{k}] must be on the device of inputs[0], {inputs[0].device}; "
                f"got {m.device}"
            )


def _wide(inputs: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(m.dtype == torch.float64 for m in inputs) else torch.float32


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] or [1], to be multiplied with [B, ...]."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def residual(inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """r in plain torch, without fused multiply-adds."""
    wide = _wide(inputs)
    total = torch.zeros_like(inputs[0], dtype=wide)
    for w, m in zip(weights, inputs, strict=True):
        column = _column(w.to(wide), m)
        total = torch.where(column == 0, total, total + column * m.to(wide))
    return total


def _root(square: Tensor, c: float) -> Tensor:
    """sqrt(square + c^2), whose derivative at 0 is 0 where c is 0."""
    if c != 0.0:
        return (square + c * c).sqrt()
    return torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt())


def _total(values: Tensor) -> Tensor:
    """The sum over the elements of each sample, float64 [B]."""
    wide = values.double()
    return wide.flatten(1).sum(1) if wide.dim() > 1 else wide


def plain_distance(inputs: Sequence[Tensor], weights: Tensor, kind: int, c: float) -> Tensor:
    """The operator in plain torch: differentiable as often as wanted, in both modes."""
    r = residual(inputs, weights)
    if kind == ABS or (kind == HUBER and c == 0.0):
        return _total(r.abs())
    if kind == HUBER:
        far = r.abs() > 2.0**60  # its square may not be finite
        near = torch.where(far, 0.0, r)
        small = near * (near / (_root(near * near, c) + c))
        return _total(torch.where(far, r.abs() - c, small))
    square = _total(r.double().square())
    if kind == SQUARE:
        return square
    root = _root(square, c)
    return root if c == 0.0 else square / (root + c)


def plain_backward(
    grad: Tensor,
    inputs: Sequence[Tensor],
    weights: Tensor,
    value: Tensor,
    kind: int,
    c: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """The operator's derivative in plain torch, differentiable itself."""
    r = residual(inputs, weights)
    g = grad.double()
    if kind == PSEUDO_HUBER:
        root = _root(_total(r.double().square()), c)
        g = torch.where(root == 0, 0.0, g / torch.where(root == 0, 1.0, root))
        slope = r
    elif kind == SQUARE:
        slope = 2.0 * r
    elif kind == ABS or c == 0.0:
        slope = r.sign()
    else:
        far = r.abs() > 2.0**60
        near = torch.where(far, 0.0, r)
        slope = torch.where(far, r.sign(), near / _root(near * near, c))
    found = []
    for w, m, is_wanted in zip(weights, inputs, wanted, strict=True):
        if not is_wanted:
            continue
        factor = _column((w * g).to(r.dtype), r)
        found.append((torch.where(_column(w, r) == 0, 0.0, factor * slope)).to(m.dtype))
    return found


def _fake(inputs: Sequence[Tensor], weights: Tensor, kind: int, c: float) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape[0], dtype=torch.float64)


def _fake_backward(
    grad: Tensor,
    inputs: Sequence[Tensor],
    weights: Tensor,
    value: Tensor,
    kind: int,
    c: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    return [torch.empty_like(m) for m, is_wanted in zip(inputs, wanted, strict=True) if is_wanted]


class _Batches(Protocol):
    """What vmap tells a rule."""

    @property
    def batch_size(self) -> int: ...


def _merged(value: Tensor, dim: int | None, size: int) -> Tensor:
    """[V, B, ...] as [V B, ...]."""
    front = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return front.reshape(size * front.shape[1], *front.shape[2:])


def _merged_weights(value: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    """[V, K, B or 1] as [K, V B]."""
    front = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    front = front.expand(size, front.shape[1], batch)
    return front.transpose(0, 1).reshape(front.shape[1], size * batch)


def _batched(
    info: _Batches,
    in_dims: Any,
    inputs: Sequence[Tensor],
    weights: Tensor,
    kind: int,
    c: float,
) -> tuple[Tensor, int]:
    """Let the new dimension join the batch."""
    size = info.batch_size
    merged = [_merged(m, d, size) for m, d in zip(inputs, in_dims[0], strict=True)]
    batch = len(merged[0]) // size if size else 0
    rows = _merged_weights(weights, in_dims[1], size, batch)
    return torch.ops.cmsolvers.form_distance(merged, rows, kind, c).reshape(size, batch), 0


def _batched_backward(
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
    merged = [_merged(m, d, size) for m, d in zip(inputs, in_dims[1], strict=True)]
    batch = len(merged[0]) // size if size else 0
    grads = torch.ops.cmsolvers.form_distance_backward(
        _merged(grad, in_dims[0], size),
        merged,
        _merged_weights(weights, in_dims[2], size, batch),
        _merged(value, in_dims[3], size),
        kind,
        c,
        wanted,
    )
    return [g.reshape(size, batch, *g.shape[1:]) for g in grads], [0] * len(grads)


if C is None:
    for _key in ("CompositeExplicitAutograd", "Autograd"):
        library.impl("form_distance", plain_distance, _key)
        library.impl("form_distance_backward", plain_backward, _key)

torch.library.register_fake("cmsolvers::form_distance", _fake, lib=library)
torch.library.register_fake("cmsolvers::form_distance_backward", _fake_backward, lib=library)
torch.library.register_vmap("cmsolvers::form_distance", _batched, lib=library)
torch.library.register_vmap("cmsolvers::form_distance_backward", _batched_backward, lib=library)
