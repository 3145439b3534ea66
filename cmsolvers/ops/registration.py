"""The operators: schemas, fakes, plain-torch kernels where the binary is missing.

The arguments are `numbers`, with `tensors[i]` (floating, of shape [B], [1] or []; read by the
kernel) in place of number `places[i]`. `rule` (see rules.py) says what they are. `noise` is empty
or (seed, offset, stream, draw); `clamp` is empty or (low, high); `second` is one of reference.NONE,
SCALED, X0, PAIR. Where `out` is absent only the second output is made.
Autograd is in autograd.py, vmap in vmap_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cmsolvers.ops import reference
from cmsolvers.ops.binary import C

_COMMON = (
    "Tensor x, Tensor[] inputs, float[] numbers, Tensor[] tensors, int[] places, "
    "int rule, SymInt[] noise, Tensor? key, float[] clamp"
)

library: Any = torch.library.Library("cmsolvers", "DEF")  # type: ignore[no-untyped-call]
library.define(f"weighted_step({_COMMON}) -> Tensor")
library.define(
    f"weighted_step_two({_COMMON}, int second, ScalarType second_dtype) -> (Tensor, Tensor)"
)
library.define(
    f"weighted_step_out(Tensor(a!)? out, Tensor(b!)? second_out, {_COMMON}, int second) -> ()"
)

step_one: Callable[..., Tensor] = torch.ops.cmsolvers.weighted_step
step_two: Callable[..., tuple[Tensor, Tensor]] = torch.ops.cmsolvers.weighted_step_two
step_out: Callable[..., None] = torch.ops.cmsolvers.weighted_step_out
"""The operators; `step_out` writes to memory that is given."""


def _one(
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
) -> Tensor:
    out = torch.empty_like(x)
    _out(out, None, x, inputs, numbers, tensors, places, rule, noise, key, clamp, reference.NONE)
    return out


def _two(
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
    second: int,
    second_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    out, other = torch.empty_like(x), torch.empty_like(x, dtype=second_dtype)
    _out(out, other, x, inputs, numbers, tensors, places, rule, noise, key, clamp, second)
    return out, other


def _out(
    out: Tensor | None,
    second_out: Tensor | None,
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
    second: int,
) -> None:
    dtype = x.dtype if second_out is None else second_out.dtype
    first, other = reference.weighted_step(
        x, inputs, numbers, tensors, places, rule, noise, key, clamp, second, dtype
    )
    if out is not None:
        out.copy_(first)
    if second_out is not None and other is not None:
        second_out.copy_(other)


if C is None:
    for _name, _kernel in (
        ("weighted_step", _one),
        ("weighted_step_two", _two),
        ("weighted_step_out", _out),
    ):
        library.impl(_name, _kernel, "CompositeExplicitAutograd")


def _fake_one(
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
) -> Tensor:
    return torch.empty_like(x)


def _fake_two(
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
    second: int,
    second_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=second_dtype)


def _fake_out(
    out: Tensor | None,
    second_out: Tensor | None,
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
    second: int,
) -> None:
    return None


for _name, _fake in (
    ("weighted_step", _fake_one),
    ("weighted_step_two", _fake_two),
    ("weighted_step_out", _fake_out),
):
    torch.library.register_fake(f"cmsolvers::{_name}", _fake, lib=library)
