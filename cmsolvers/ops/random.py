"""Unit normals and uniforms of the noise contract (see cmsolvers.noise)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmsolvers.ops import reference
from cmsolvers.ops.arguments import check_dtype
from cmsolvers.ops.keys import Key, SeedLike, checked_place, place, resolve
from cmsolvers.ops.step import weighted_step


def normal(
    shape: Sequence[int],
    seed: SeedLike,
    *,
    draw: int = 0,
    stream: int = 0,
    offset: int = 0,
    ids: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """The contract's unit normals: one for each (seed, sample_id, stream, draw, element).

    The same arguments give the same values on every device, in any batch, dtype (before the cast)
    and memory format. Support reaches 6.7 sigma, and about 7 values in 10^8 are exactly 0.

    Args:
        shape: [B, ...]; row b is sample `offset + b`, or `ids[b]`.
        seed: see `noise.key`.
        draw: 0..2^32-1.
        stream: 0..255; the library's streams are named in `noise`.
        offset: id of the first sample.
        ids: int64 [B], the sample ids, in place of offset.
        dtype: float32, float64 (the same values), float16 or bfloat16 (rounded).
        device: where the result lives.
        memory_format: of the result.
        out: where to write instead; its dtype and device are then used.

    Returns:
        A tensor of that shape.

    Raises:
        TypeError, ValueError: as `noise.key`; a shape without a batch dimension; an unknown dtype.
    """
    if out is not None and not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor; got {type(out).__name__}")
    shape, key = _prepare(shape, seed, offset, ids, out.device if out is not None else device)
    check_dtype("dtype", dtype)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
    elif out.shape != shape:
        raise ValueError(f"out must have shape {list(shape)}; got {list(out.shape)}")
    return weighted_step(out, (), (0.0,), w_z=1.0, seed=key, stream=stream, draw=draw, out=out)


def uniform(
    shape: Sequence[int],
    seed: SeedLike,
    *,
    draw: int = 0,
    stream: int = 4,
    offset: int = 0,
    ids: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniforms in (0, 1), never 0 or 1: (r + 1/2) 2^-32 of the contract's random words r.

    Element e has word e % 4 of group e // 4. Meant for training levels and the like: it runs in
    plain torch, in float64, and is rounded to `dtype` at the end; what would round to 0 or 1
    becomes the dtype's nearest number in between. So the ends, both included, are

    - float64: 2^-33 and 1 - 2^-33 (nothing is rounded),
    - float32: 2^-33 and 1 - 2^-24,
    - bfloat16: 2^-33 and 1 - 2^-8,
    - float16: 2^-24 (its smallest number) and 1 - 2^-11.

    Args and errors: as `normal`.
    """
    check_dtype("dtype", dtype)
    stream, draw = checked_place(stream, draw)
    shape, key = _prepare(shape, seed, offset, ids, device)
    place(key, stream, draw)
    count = math.prod(shape[1:])
    groups = -(-count // 4)
    r = reference.words(
        shape[0],
        groups,
        seed=key.seed,
        offset=key.offset,
        table=key.table,
        stream=stream,
        draw=draw,
        device=device,
    )
    u = (torch.stack(r, dim=-1).flatten(1)[:, :count].double() + 0.5) * 2.0**-32
    if dtype != torch.float64:
        # In float64, where both bounds are exact: how a device handles subnormals does not matter.
        limits = torch.finfo(dtype)
        u.clamp_(limits.smallest_normal * limits.eps, 1.0 - limits.eps / 2)
    return u.reshape(shape).to(dtype)


def _prepare(
    shape: Sequence[int],
    seed: SeedLike,
    offset: int,
    ids: Tensor | None,
    device: torch.device | str | None,
) -> tuple[torch.Size, Key]:
    size = torch.Size(shape)
    if len(size) < 1:
        raise ValueError("shape must have a batch dimension; got []")
    if min(size) < 0:
        raise ValueError(f"shape must not be negative; got {list(size)}")
    return size, resolve(seed, size[0], offset=offset, ids=ids, device=device)
