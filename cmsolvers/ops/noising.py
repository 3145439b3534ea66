"""Several forms alpha x0 + sigma z of one batch and one noise, in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cmsolvers.checks import PRECISION
from cmsolvers.ops import reference
from cmsolvers.ops.arguments import check_dtype, check_rows, check_tensor
from cmsolvers.ops.binary import C
from cmsolvers.ops.keys import SeedLike, place, resolve
from cmsolvers.ops.registration import library
from cmsolvers.ops.step import keyed, tracing

MAX_FORMS = 6

library.define(
    "noise_forms(Tensor x0, Tensor weights, SymInt[] noise, Tensor? key, int[] dtypes) -> Tensor[]"
)

CODES = {dtype: code for code, dtype in enumerate(PRECISION)}
"""Dtypes as the operator's numbers, those of DType in csrc/step/params.h."""

_DTYPES = tuple(PRECISION)

FAST: Callable[..., tuple[Tensor, ...] | None] | None = None if C is None else C.fast_noise_forms
"""fast_noise_forms(x0, weights, seed, stream, draw, offset, dtypes), positional only: the plain
case straight into the kernel; None in every other case. The seed is an int or the table of a Key;
dtypes is None or a tuple."""


def noise_forms(
    x0: Tensor,
    weights: Tensor,
    *,
    seed: SeedLike,
    stream: int = 3,
    draw: int = 0,
    offset: int = 0,
    dtypes: Sequence[torch.dtype | None] | None = None,
) -> tuple[Tensor, ...]:
    """The J tensors weights[j, 0] x0 + weights[j, 1] z, all of the same noise z.

    x0 is read once and z, the contract's unit normals of `noise.normal`, is made once. Weights
    (1, s), (1, s'), (c, c s), (c', c' s') give a consistency pair with both inputs of a network;
    (0, 1) is z. The arithmetic is that of `add_noise`: float32, or float64 where x0 is float64; a
    weight of 0 drops its term.

    Args:
        x0: clean data [B, ...], float64, float32, float16 or bfloat16.
        weights: float64 [J, 2, B] or [J, 2, 1] on the device of x0, J from 1 to 6. Constants.
        seed: see `noise.key`.
        stream: 0..255, see `noise`.
        draw: 0..2^32-1, which draw of the stream; 0 where the seed is a key that holds draws.
        offset: sample id of the first row.
        dtypes: of each output; None is that of x0.

    Returns:
        J tensors in the layout of x0. They are differentiable in x0.

    Raises:
        TypeError: something that is not a tensor, or a dtype that is not taken.
        ValueError: shapes, devices, weights that require a gradient, ranges of the noise's place.
    """
    if FAST is not None and not tracing():
        first_key, first = keyed(seed, offset)
        wanted = dtypes if dtypes is None else tuple(dtypes)
        done = FAST(x0, weights, first_key, stream, draw, first, wanted)
        if done is not None:
            return done
    check_tensor("x0", x0)
    batch = x0.shape[0] if x0.dim() else 1
    check_rows("weights", weights, x0, batch)
    if weights.dim() != 3 or not 1 <= weights.shape[0] <= MAX_FORMS or weights.shape[1] != 2:
        raise ValueError(
            f"weights must have shape [J, 2, {batch}] or [J, 2, 1] with J from 1 to {MAX_FORMS}; "
            f"got {list(weights.shape)}"
        )
    kinds = [x0.dtype] * len(weights) if dtypes is None else [d or x0.dtype for d in dtypes]
    if len(kinds) != len(weights):
        raise ValueError(f"dtypes must hold {len(weights)} entries; got {len(kinds)}")
    for j, dtype in enumerate(kinds):
        check_dtype(f"dtypes[{j}]", dtype)
    key = resolve(seed, batch, offset=offset, device=x0.device)
    where = place(key, stream, draw)
    codes = [CODES[dtype] for dtype in kinds]
    return tuple(torch.ops.cmsolvers.noise_forms(x0, weights, where, key.table, codes))


def _plain(
    x0: Tensor,
    weights: Tensor,
    noise: Sequence[int],
    key: Tensor | None,
    dtypes: Sequence[int],
) -> list[Tensor]:
    """The kernel in plain torch (without fused multiply-adds)."""
    seed, offset, stream, draw = noise
    shape = x0.shape if x0.dim() else (1,)
    z = reference.normal(
        shape,
        seed=seed,
        offset=offset,
        table=key,
        stream=stream,
        draw=draw,
        device=x0.device,
    )
    return forms_of(x0, z.reshape(x0.shape), weights, [_DTYPES[code] for code in dtypes])


def forms_of(x0: Tensor, z: Tensor, weights: Tensor, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """The forms of given noise in plain torch; differentiable in x0."""
    wide = torch.float64 if x0.dtype == torch.float64 else torch.float32
    x, z = x0.to(wide), z.to(wide)
    found = []
    for w, dtype in zip(weights, dtypes, strict=True):
        a, b = (column.to(wide).reshape(-1, *[1] * (x0.dim() - 1)) for column in w)
        if x0.dim() == 0:
            a, b = a.reshape(()), b.reshape(())
        first = torch.where(a == 0, 0.0, a * x)
        out = torch.where(b == 0, first, first + b * z).to(dtype)
        like = torch.empty_like(x0, dtype=dtype)
        found.append(out if out.requires_grad else like.copy_(out))
    return found


def _fake(
    x0: Tensor, weights: Tensor, noise: object, key: Tensor | None, dtypes: Sequence[int]
) -> list[Tensor]:
    return [torch.empty_like(x0, dtype=_DTYPES[code]) for code in dtypes]


if C is None:
    library.impl("noise_forms", _plain, "CompositeExplicitAutograd")
    library.impl("noise_forms", _plain, "Autograd")

torch.library.register_fake("cmsolvers::noise_forms", _fake, lib=library)
