"""The size, per sample, of a weighted sum of tensors that is never stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

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
        derivative of |r|, and of a root without c, is 0. A sample that is NaN or infinite reaches
        no other one; where the gradient that comes back to it is exactly 0, so are the gradients
        of its inputs: `torch.where(bad, 0.0, value)` leaves it out. (Not inside `torch.func.grad`
        and its like, where formulas of torch are differentiated: there it is 0 * NaN.)

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
    return wide.sum(list(range(1, wide.dim()))) if wide.dim() > 1 else wide


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
    # Where nothing comes back to a sample, what is not finite counts as 0: its gradient is 0, not
    # 0 * NaN. What is finite stays, since the derivative by the gradient is wanted there too.
    none = grad == 0
    r = residual(inputs, weights)
    r = torch.where(_column(none, r) & ~r.isfinite(), 0.0, r)
    g = grad.double()
    if kind == PSEUDO_HUBER:
        root = _root(_total(r.double().square()), c)
        g = torch.where(root == 0, 0.0, g / torch.where(root == 0, 1.0, root))
        slope = r
    elif kind == SQUARE:
        slope = 2.0 * r
    elif kind == ABS or c == 0.0:
        slope = torch.where(r.isnan(), r, r.sign())  # as the kernel: torch has 0 for NaN
    else:
        far = r.abs() > 2.0**60
        near = torch.where(far, 0.0, r)
        slope = torch.where(far, r.sign(), near / _root(near * near, c))
    found = []
    for w, m, is_wanted in zip(weights, inputs, wanted, strict=True):
        if not is_wanted:
            continue
        factor = _column((torch.where(none & ~w.isfinite(), 0.0, w) * g).to(r.dtype), r)
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


class _Recorded(torch.autograd.Function):
    """The operator in plain torch with `plain_backward` as its derivative."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, kind: int, c: float, *inputs: Tensor) -> Tensor:
        value = plain_distance(inputs, weights, kind, c)
        ctx.save_for_backward(weights, value, *inputs)
        ctx.kind, ctx.c = kind, c
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights, value, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        made = iter(plain_backward(grad, inputs, weights, value, ctx.kind, ctx.c, wanted))
        return None, None, None, *[next(made) if is_wanted else None for is_wanted in wanted]


def _plain_autograd(inputs: Sequence[Tensor], weights: Tensor, kind: int, c: float) -> Tensor:
    """Without the binary, what csrc/loss/distance_autograd.cpp does."""
    unpacked: Any = forward_ad.unpack_dual
    tangents = any(unpacked(m).tangent is not None for m in inputs)
    if tangents or torch._C._are_functorch_transforms_active():
        return plain_distance(inputs, weights, kind, c)
    found: Tensor = _Recorded.apply(weights, kind, c, *inputs)  # type: ignore[no-untyped-call]
    return found


if C is None:
    library.impl("form_distance", plain_distance, "CompositeExplicitAutograd")
    library.impl("form_distance", _plain_autograd, "Autograd")
    for _key in ("CompositeExplicitAutograd", "Autograd"):
        library.impl("form_distance_backward", plain_backward, _key)

torch.library.register_fake("cmsolvers::form_distance", _fake, lib=library)
torch.library.register_fake("cmsolvers::form_distance_backward", _fake_backward, lib=library)
