"""The kernels' twin in plain torch: the noise contract bit for bit, and the weighted step.

It runs where the binary is missing, and the tests hold the binary against it. float32 fused
multiply-adds are emulated in float64 with one correct rounding, so the normals equal the kernels'
to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cmsolvers.ops.rules import canonical

MASK = 0xFFFFFFFF
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)

# The polynomials of csrc/contract/math.h (tools/fit_polynomials.py derives them).
LN_REST = (
    0.333333313,
    -0.250008196,
    0.200012267,
    -0.166233569,
    0.142017588,
    -0.131601825,
    0.12761575,
    -0.0763449371,
)
LN2_HI, LN2_LO = 0.693147182, -1.90465421e-09
TWO_PI_HI, TWO_PI_LO = 6.28318548, -1.74845553e-07
SIN_REST = (-41.3416748, 81.5939407, -75.4533997)
COS_REST = (-19.7392082, 64.9393234, -85.4437408, 59.2459641)

NONE, SCALED, X0, PAIR = 0, 1, 2, 3
"""What the second output of a step is: nothing, s0 x', the (clamped) x0, or s0 x + s1 z."""


Word = TypeVar("Word", int, Tensor)


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> list[Word]:
    """Philox4x32-10 (Salmon et al. 2011) on ints, or int64 tensors, that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK) ^ c1 ^ k0,
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + PHILOX_WEYL[0]) & MASK, (k1 + PHILOX_WEYL[1]) & MASK
    return [c0, c1, c2, c3]


def _f32(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32).double()


def _fma(a: Tensor, b: float | Tensor, c: float | Tensor) -> Tensor:
    """Round a b + c once to float32, of values held in float64: exact product, sum to odd."""
    b, c = (v if isinstance(v, Tensor) else _f32(v).to(a.device) for v in (b, c))
    product = a * b
    total = product + c
    virtual = total - product
    error = (product - (total - virtual)) + (c - virtual)
    bits = total.view(torch.int64)
    toward = torch.where((error > 0) == (total > 0), 1, -1)
    odd = bits + torch.where((error != 0) & (bits & 1 == 0), toward, 0)
    return odd.view(torch.float64).float().double()


def _round(value: Tensor) -> Tensor:
    return value.float().double()


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    result = _f32(coefficients[-1]).to(x.device).expand_as(x)
    for c in reversed(coefficients[:-1]):
        result = _fma(result, x, c)
    return result


def _ln(u: Tensor) -> Tensor:
    bits = u.float().view(torch.int32)
    shifted = bits - 0x3F3504F3
    exponent = (shifted >> 23).double()
    f = ((shifted & 0x7FFFFF) + 0x3F3504F3).view(torch.float32).double() - 1.0
    square = _round(f * f)
    rest = _fma(
        _round(square * f), _horner(f, LN_REST), _round(exponent * _f32(LN2_LO).to(u.device))
    )
    rest = _fma(square, -0.5, rest)
    return _fma(exponent, LN2_HI, _fma(f, 1.0, rest))


def _sincos_turns(t: Tensor) -> tuple[Tensor, Tensor]:
    """(sin, cos) of 2 pi t, t in [-0.5, 0.5]."""
    quadrant = torch.round(4.0 * t)  # to even, as adding 1.5 * 2^23 does
    f = t - 0.25 * quadrant
    y = _round(f * f)
    low = _round(f * _fma(y, _horner(y, SIN_REST), TWO_PI_LO))
    sin, cos = _fma(f, TWO_PI_HI, low), _fma(y, _horner(y, COS_REST), 1.0)
    k = quadrant.long() & 3
    swap = k & 1 == 1
    sin_out = torch.where(swap, cos, sin) * torch.where(k & 2 == 2, -1.0, 1.0)
    cos_out = torch.where(swap, sin, cos) * torch.where((k + 1) & 2 == 2, -1.0, 1.0)
    return sin_out, cos_out


def _box_muller(r0: Tensor, r1: Tensor) -> tuple[Tensor, Tensor]:
    u = _fma(_round(r0.double()), 2.0**-32, 2.0**-33)
    radius = _round(torch.sqrt(_round(-2.0 * _ln(u))))
    turns = _round(torch.where(r1 >= 1 << 31, r1 - (1 << 32), r1).double()) * 2.0**-32
    sin, cos = _sincos_turns(turns)
    return _round(radius * cos), _round(radius * sin)


def words(
    batch: int,
    groups: int,
    *,
    seed: int,
    offset: int,
    table: Tensor | None,
    stream: int,
    draw: int,
    device: torch.device | str | None,
) -> list[Tensor]:
    """The four random words of every group of four elements: int64 tensors [batch, groups].

    A third column of the table is the draw of each sample, in place of `draw`.
    """
    draws: int | Tensor = draw
    if table is None:
        seeds = torch.full((batch,), seed, dtype=torch.int64, device=device)
        ids = offset + torch.arange(batch, dtype=torch.int64, device=device)
    else:
        table = table.to(device)
        rows = table.expand(batch, table.shape[1])
        seeds = rows[:, 0]
        ids = rows[:, 1] + (
            torch.arange(batch, device=device) if table.shape[0] == 1 and batch != 1 else 0
        )
        if table.shape[1] == 3:
            draws = (rows[:, 2] & MASK).unsqueeze(1)
    c0 = torch.arange(groups, dtype=torch.int64, device=device).expand(batch, groups)
    c2 = (ids & MASK).unsqueeze(1).expand(batch, groups)
    c3 = (((ids >> 32) & 0xFFFFFF) | (stream << 24)).unsqueeze(1).expand(batch, groups)
    k0, k1 = (seeds & MASK).unsqueeze(1), ((seeds >> 32) & MASK).unsqueeze(1)
    return philox((c0, torch.zeros_like(c0) + draws, c2, c3), (k0, k1))


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    offset: int,
    table: Tensor | None,
    stream: int,
    draw: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """The contract's unit normals, float32, contiguous."""
    batch = shape[0]
    count = math.prod(shape[1:])
    if batch * count == 0:
        return torch.empty(tuple(shape), dtype=torch.float32, device=device)
    r0, r1, r2, r3 = words(
        batch,
        -(-count // 4),
        seed=seed,
        offset=offset,
        table=table,
        stream=stream,
        draw=draw,
        device=device,
    )
    z = torch.stack((*_box_muller(r0, r1), *_box_muller(r2, r3)), dim=-1)
    return z.flatten(1)[:, :count].reshape(tuple(shape)).float()


def weighted_step(
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
) -> tuple[Tensor, Tensor | None]:
    """The step of csrc/step/params.h; numbers, tensors, places, rule: see rules.canonical."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    n = len(inputs)
    weights = canonical(numbers, tensors, places, rule, n)

    def weight(j: int) -> float | Tensor:
        w = weights[j]
        if not isinstance(w, Tensor):
            return w
        return w.to(wide).reshape((-1, *[1] * (x.dim() - 1)) if x.dim() else ())

    def plus(total: Tensor | None, w: float | Tensor, value: Tensor) -> Tensor | None:
        """Add w value; a term of weight zero is not there, the first is no sum (it keeps -0.0)."""
        if isinstance(w, Tensor):
            product = w * value.to(wide)
            if total is None:
                return torch.where(w == 0, 0.0, product)
            return torch.where(w == 0, total, total + product)
        if w == 0.0:
            return total
        product = w * value.to(wide)
        return product if total is None else total + product

    def affine(first: float | Tensor, *terms: tuple[float | Tensor, Tensor]) -> Tensor:
        """First x + the terms; without x the sum begins at +0."""
        total = plus(None, first, x)
        if total is None:
            total = torch.zeros_like(x, dtype=wide)
        for w, value in terms:
            total = plus(total, w, value)
            assert total is not None
        return total

    z: list[Tensor] = []
    if noise:
        seed, offset, stream, draw = noise
        shape = x.shape if x.dim() else (1,)
        drawn = normal(
            shape,
            seed=seed,
            offset=offset,
            table=key,
            stream=stream,
            draw=draw,
            device=x.device,
        )
        z = [drawn.reshape(x.shape)]
    basis = list(inputs)
    if clamp or second == X0:
        basis[0] = affine(weight(n + 2), (weight(n + 3), inputs[0]))
    if clamp:
        low, high = (torch.tensor(bound, dtype=wide, device=x.device) for bound in clamp)
        basis[0] = torch.where(basis[0] < low, low, basis[0])  # NaN passes through
        basis[0] = torch.where(basis[0] > high, high, basis[0])
    terms = [(weight(k + 1), m) for k, m in enumerate(basis)]
    total = affine(weight(0), *terms, *((weight(n + 1), v) for v in z))
    other: Tensor | None = None
    if second == SCALED:
        other = (weight(n + 4) * total).to(second_dtype)
    elif second == X0:
        other = basis[0].to(second_dtype)
    elif second == PAIR:
        other = affine(weight(n + 4), *((weight(n + 5), v) for v in z)).to(second_dtype)
    return total.to(x.dtype), other
