"""Unit normals and uniforms of the noise contract (see cmsolvers.noise)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cmsolvers.ops import reference
from cmsolvers.ops.arguments import check_dtype
from cmsolvers.ops.binary import C
from cmsolvers.ops.keys import Key, SeedLike, checked_place, place, resolve
from cmsolvers.ops.registration import library
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

    Element e has word e % 4 of group e // 4. Meant for training levels and the like: it is made in
    float64 and rounded to `dtype` at the end; what would round to 0 or 1 becomes the dtype's
    nearest number in between. So the ends, both included, are

    - float64: 2^-33 and 1 - 2^-33 (nothing is rounded),
    - float32: 2^-33 and 1 - 2^-24,
    - bfloat16: 2^-33 and 1 - 2^-8,
    - float16: 2^-24 (its smallest number) and 1 - 2^-11.

    Args and errors: as `normal`.
    """
    check_dtype("dtype", dtype)
    stream, draw = checked_place(stream, draw)
    shape, key = _prepare(shape, seed, offset, ids, device)
    count = math.prod(shape[1:])
    where = place(key, stream, draw)
    u = torch.empty(shape[0], count, dtype=torch.float64, device=device)
    _write(u, where, key.table)
    if dtype != torch.float64:
        # In float64, where both bounds are exact: how a device handles subnormals does not matter.
        limits = torch.finfo(dtype)
        u.clamp_(limits.smallest_normal * limits.eps, 1.0 - limits.eps / 2)
    return u.reshape(shape).to(dtype)


def _plain(out: Tensor, noise: Sequence[int], key: Tensor | None) -> None:
    """The kernel of `uniform` in plain torch, to the same bits."""
    seed, offset, stream, draw = noise
    count = out.shape[1]
    r = reference.words(
        out.shape[0],
        -(-count // 4),
        seed=seed,
        offset=offset,
        table=key,
        stream=stream,
        draw=draw,
        device=out.device,
    )
    words = torch.stack(r, dim=-1).flatten(1)[:, :count]
    out.copy_((words.double() + 0.5) * 2.0**-32)


library.define("uniform(Tensor(a!) out, SymInt[] noise, Tensor? key) -> ()")
_write: Callable[..., None] = torch.ops.cmsolvers.uniform
if C is None:
    library.impl("uniform", _plain, "CompositeExplicitAutograd")


def _fake(out: Tensor, noise: Sequence[int], key: Tensor | None) -> None:
    return None


torch.library.register_fake("cmsolvers::uniform", _fake, lib=library)


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
