"""Exponential moving averages: several averages of many tensors, moved in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.ops.arguments import check_built_for
from cmsolvers.ops.binary import C
from cmsolvers.ops.registration import library

library.define(
    "ema_update(Tensor(a!)[] averages, Tensor[] values, float[] weights, Tensor? table, "
    "int[] infinite) -> ()"
)


def ema_update(
    averages: Sequence[Sequence[Tensor]],
    values: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    *,
    infinite: Sequence[int] = (),
) -> None:
    """Move k averages towards n tensors: average_j <- average_j + w_j (value - average_j).

    One pass: each value is read once, each average read and written once, all tensors of a device
    and dtype in few launches (up to four averages in each; on CUDA also about 80 tensors). The
    arithmetic is that of the averages, float32 or float64, with two roundings:
    fma(w, value - average, average) for |w| < 1/2, fma(w - 1, value - average, value) otherwise, as
    `torch.lerp` has it. The bits do not depend on device, instruction set or layout. Nothing is
    recorded for derivatives, and values that require some are read as they are.

    Args:
        averages: k sequences of n tensors, float32 or float64, changed in place. They may share
            memory: then it is as if one tensor came after the other.
        values: n tensors in the shapes of the averages, float64, float32, float16 or bfloat16, in
            any layout; from another device they are copied.
        weights: k numbers in [0, 1], or a float64 tensor [k], read by the kernel: a captured graph
            replays with the weights that were written there last.
        infinite: places in `values` of tensors that may have infinite entries, as masks do. Where
            the new average of such a tensor is not finite, the value takes its place.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: lists or shapes that do not fit, a weight outside [0, 1].
        RuntimeError: averages that require gradients, while gradients are enabled; averages that
            overlap themselves (expanded ones); CUDA tensors without a CUDA build.
    """
    for j, given in enumerate(averages):
        if len(given) != len(values):
            raise ValueError(
                f"averages[{j}] must hold one tensor per value, {len(values)}; got {len(given)}"
            )
        _only_tensors(f"averages[{j}]", given)
    numbers, table = _weights(weights, len(averages))
    _only_tensors("values", values)
    flat = list(chain.from_iterable(averages))
    followed = torch.is_grad_enabled()
    for t in flat:
        if t.is_cuda:
            check_built_for("averages", t)
        if followed and t.requires_grad:
            raise RuntimeError(
                "averages must not require gradients: no derivative passes through ema_update; use "
                "requires_grad_(False) or torch.no_grad()"
            )
    if flat:
        with torch.no_grad():
            torch.ops.cmsolvers.ema_update(flat, values, numbers, table, infinite)


def _only_tensors(name: str, given: Sequence[object]) -> None:
    for place, t in enumerate(given):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}[{place}] must be a tensor; got {check.describe(t)}")


def _weights(weights: Sequence[float] | Tensor, k: int) -> tuple[list[float], Tensor | None]:
    if isinstance(weights, Tensor):
        if weights.dtype is not torch.float64:
            raise TypeError(f"weights must be float64 where they are a tensor; got {weights.dtype}")
        if weights.shape != (k,):
            raise ValueError(f"weights must have shape [{k}]; got {list(weights.shape)}")
        return [], weights.detach()
    if len(weights) != k:
        raise ValueError(f"weights must hold one number per list of averages, {k}; got {weights}")
    return [check.within(f"weights[{j}]", w, 0.0, 1.0) for j, w in enumerate(weights)], None


def _plain(
    averages: Sequence[Tensor],
    values: Sequence[Tensor],
    weights: Sequence[float],
    table: Tensor | None,
    infinite: Sequence[int],
) -> None:
    """The kernel in plain torch, within 1 ULP of the larger of average and value."""
    k = len(weights) if table is None else len(table)
    n = len(values)
    for place, value in enumerate(values):
        if value.dtype not in _VALUES:
            raise TypeError(
                f"values[{place}] must be float64, float32, float16 or bfloat16; got {value.dtype}"
            )
    for j in range(k):
        mine = list(averages[j * n : (j + 1) * n])
        for i, (average, value) in enumerate(zip(mine, values, strict=True)):
            if average.dtype not in (torch.float32, torch.float64):
                raise TypeError(
                    f"averages[{j}][{i}] must be float64 or float32; got {average.dtype}"
                )
            if average.shape != value.shape:
                raise ValueError(
                    f"averages[{j}][{i}] must have the shape of values[{i}], "
                    f"{list(value.shape)}; got {list(average.shape)}"
                )
        theirs = [b.to(a) for a, b in zip(mine, values, strict=True)]
        if table is None:
            torch._foreach_lerp_(mine, theirs, weights[j])
        else:
            torch._foreach_lerp_(mine, theirs, [table[j].to(a) for a in mine])
        for i in infinite:
            torch.where(mine[i].isfinite(), mine[i], theirs[i], out=mine[i])


_VALUES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

if C is None:
    library.impl("ema_update", _plain, "CompositeExplicitAutograd")


def _fake(*arguments: object) -> None:
    return None


torch.library.register_fake("cmsolvers::ema_update", _fake, lib=library)
