"""Weighted sums of normals of many draws: what an increment of a Brownian path is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmsolvers.ops import reference
from cmsolvers.ops.binary import C
from cmsolvers.ops.keys import Key
from cmsolvers.ops.registration import library

MAX_DRAWS = 128

library.define(
    "noise_sum(Tensor(a!) out, int[] draws, float[] weights, Tensor? table, SymInt[] noise, "
    "Tensor? key) -> ()"
)


def noise_sum(
    out: Tensor,
    draws: Sequence[int],
    weights: Sequence[float],
    *,
    table: Tensor | None = None,
    key: Key,
    stream: int,
) -> Tensor:
    """Write sum_k w_k normal(seed, id, stream, draw_k, element) to `out`, in one launch.

    The sum is made in float32, one fused multiply-add per term in the order given, and rounded to
    the dtype of `out` at the end, so its bits do not depend on device, batch, layout or instruction
    set. Terms of weight 0.0 are not there.

    Args:
        out: [B, ...], float64, float32, float16 or bfloat16.
        draws: up to 128 draws, each in [0, 2^32).
        weights: one per draw; rounded to float32.
        table: float64 [B, n, 2] on the device of out, (draw, weight) of each sample, in place of
            draws and weights, which must be empty then.
        key: the key of the batch, see `noise.key`; without draws, which are those of the terms.
        stream: 0..255, see `noise`.

    Returns:
        out.
    """
    key.require_no_draws()
    noise = [key.seed, key.offset, stream]
    torch.ops.cmsolvers.noise_sum(out, draws, weights, table, noise, key.table)
    return out


def _plain(
    out: Tensor,
    draws: Sequence[int],
    weights: Sequence[float],
    table: Tensor | None,
    noise: Sequence[int],
    key: Tensor | None,
) -> None:
    """The kernel in plain torch, to the same bits (reference.py says how)."""
    if table is not None:
        rows = []
        for b in range(out.shape[0]):
            entries = table[b].tolist()
            own = key if key is None or key.shape[0] == 1 else key[b : b + 1]
            place = [noise[0], noise[1] + b, noise[2]]
            if own is not None and own is key and out.shape[0] > 1:
                own = key + torch.tensor([0, b], device=key.device)
            row = torch.empty_like(out[b : b + 1])
            _plain(row, [int(d) for d, _ in entries], [w for _, w in entries], None, place, own)
            rows.append(row)
        out.copy_(torch.cat(rows) if rows else out)
        return
    seed, offset, stream = noise
    total = torch.zeros(out.shape, dtype=torch.float64, device=out.device)
    for draw, weight in zip(draws, weights, strict=True):
        w = reference._f32(weight).to(out.device)
        if w == 0.0:
            continue
        z = reference.normal(
            out.shape,
            seed=seed,
            offset=offset,
            table=key,
            stream=stream,
            draw=draw,
            device=out.device,
        )
        total = reference._fma(z.double(), w, total)
    out.copy_(total.float())


if C is None:
    library.impl("noise_sum", _plain, "CompositeExplicitAutograd")


def _fake(*arguments: object) -> None:
    return None


torch.library.register_fake("cmsolvers::noise_sum", _fake, lib=library)
