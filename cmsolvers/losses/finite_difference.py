"""Directional derivatives by finite differences that keep to a domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.forward_mode import output
from cmsolvers.losses.mixed_precision import casts_not_kept
from cmsolvers.losses.randomness import SameRandomness

# Offsets in steps, weights of order 4 and of a lower order, the latter two times the step: with
# central differences D(h) and D(h/2), (4 D(h/2) - D(h))/3 and D(h/2); one-sided, the derivatives
# of the polynomials through 5 and through 4 equally spaced values.
_CENTRAL = ((-1.0, -0.5, 0.5, 1.0), (1 / 6, -4 / 3, 4 / 3, -1 / 6), (0.0, -1.0, 1.0, 0.0))
_FORWARD = ((0.5, 1.0, 1.5, 2.0), (8.0, -6.0, 8 / 3, -1 / 2), (6.0, -3.0, 2 / 3, 0.0))


def richardson(
    function: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    step: float,
    bounds: Sequence[tuple[Tensor | float | None, Tensor | float | None] | None] | None,
    *,
    through: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """A function's value, its derivative to order 4 in the step, and the relative error [B].

    The error is the distance to a formula of lower order, plus twice what rounding of the
    function's values to their dtype does: nearly always more than the true error, and where it is
    near 1 nothing is known.

    Args:
        function: `function(*primals) -> Tensor [B, ...]`.
        primals: floating tensors [B, ...].
        tangents: one per primal, of its shape and dtype; None is 0.
        step: the largest shift, in units of the tangents' parameter (one-sided: twice it).
        bounds: (low, high) or None per primal.
        through: whether gradients follow.
    """
    same = SameRandomness(primals[0].device)
    with same.record():
        value = _call(function, primals, through)
    steps, one_sided = _steps(primals, tangents, step, bounds)
    work = torch.promote_types(value.dtype, torch.float32)
    base = value.to(work)
    found, rough = torch.zeros_like(base), torch.zeros_like(base)
    for k in range(4):
        offset, fine, coarse = (
            central[k] + one_sided * (forward[k] - central[k])
            for central, forward in zip(_CENTRAL, _FORWARD, strict=True)
        )
        shift = offset * steps
        moved = [
            p if t is None else p + _per_sample(shift, p) * t
            for p, t in zip(primals, tangents, strict=True)
        ]
        with same.replay():
            change = _call(function, moved, through).to(work) - base
        found = found + _per_sample(fine, base) * change
        rough = rough + _per_sample(coarse, base) * change
    inverse = 1 / steps
    if isinstance(inverse, Tensor):
        inverse = inverse.masked_fill(inverse.isinf(), 0)  # no room
    slope = _per_sample(inverse, base)
    found, rough = found * slope, rough * slope
    with torch.no_grad():
        rounding = (6 + 26 * one_sided) * torch.finfo(value.dtype).eps * inverse * _norm(base)
        error = _norm(found - rough) + rounding.abs()
        error = torch.where(error > 0, error / _norm(found), 0.0)
        if isinstance(inverse, Tensor):
            error = error.masked_fill(inverse == 0, torch.inf)
    return value, found, error


def _call(function: Callable[..., Tensor], primals: Sequence[Tensor], through: bool) -> Tensor:
    """The function's value; without gradient, no cast of a weight is kept."""
    if through or torch.compiler.is_compiling():
        return output(function(*primals))
    with casts_not_kept():
        return output(function(*primals))


def _steps(
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    step: float,
    bounds: Sequence[tuple[Tensor | float | None, Tensor | float | None] | None] | None,
) -> tuple[Tensor | float, Tensor | float]:
    """Steps, negative where they go down, and 1 where they are one-sided, else 0; float64 [B].

    Without bounds both are numbers.
    """
    if bounds is not None and len(bounds) != len(primals):
        raise ValueError(
            f"bounds must be one per primal, {len(primals)}; got {len(bounds)} of them"
        )
    up: list[Tensor] = []
    down: list[Tensor] = []
    for i, bound in enumerate(bounds or ()):
        tangent = tangents[i]
        if bound is None or tangent is None:
            continue
        point, speed = primals[i].detach().double(), tangent.detach().double()
        for limit, sign in zip(bound, (-1.0, 1.0), strict=True):
            if limit is None:
                continue
            if isinstance(limit, Tensor):
                limit = _per_sample(_limit(i, limit, primals[0].shape[:1]), point)
            # Room in the parameter until the bound, for shifts along and against the tangent.
            room, pace = (sign * (limit - point)).clamp(min=0), sign * speed
            up.append(_least(torch.where(pace > 0, room / pace, torch.inf)))
            down.append(_least(torch.where(pace < 0, room / -pace, torch.inf)))
    if not up:
        return step, 0.0
    above, below = torch.stack(up).amin(0), torch.stack(down).amin(0)
    central = torch.minimum(above, below) >= step
    reach = torch.maximum(above, below).clamp(max=2 * step) / 2
    steps = torch.where(central, step, torch.where(above >= below, reach, -reach))
    return steps, (~central).double()


def _limit(i: int, limit: Tensor, batch: torch.Size) -> Tensor:
    """A bound per sample, float64 [B]."""
    if limit.shape not in (batch, torch.Size([])):
        raise ValueError(
            f"bounds[{i}] must be numbers or tensors of shape {list(batch)}; "
            f"got {check.describe(limit)}"
        )
    return limit.detach().double().expand(batch)


def _least(room: Tensor) -> Tensor:
    """The smallest entry per sample, [B]."""
    return room if room.ndim == 1 else room.flatten(1).amin(1)


def _per_sample(value: Tensor | float, like: Tensor) -> Tensor | float:
    """Numbers per sample [B] for a product with `like`, in its dtype; a number as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def _norm(value: Tensor) -> Tensor:
    """Norms per sample, float64 [B]."""
    rows = value.reshape(len(value), math.prod(value.shape[1:]))
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms
