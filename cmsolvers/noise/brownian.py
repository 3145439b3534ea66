"""Brownian paths from the noise contract: increments between any two times, without state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.ops import levy
from cmsolvers.ops.keys import SeedLike, resolve
from cmsolvers.ops.noise_sum import noise_sum

STREAM = 2
_LENGTHS = (1e-60, 1e60)
"""Outside, float32 does not hold the increments (of a cell of the finest tree, or at all)."""

Time = float | Tensor
Terms = tuple[tuple[int, ...], tuple[float, ...]]
"""Draws and weights of `noise_sum`."""


class BrownianPath:
    """W on [t0, t1], one path per element: `path(a, b)` is W(b) - W(a).

    A function of (seed, sample id, element) and of the times alone. Nothing is stored: a query is
    one kernel, and neither the order of the queries, nor the batch, device, dtype (before the cast)
    or memory format changes a bit of its result.

    [t0, t1] is cut into 32 parts with independent increments, and each part is bridged by Levy's
    construction down to 2^depth cells; in a cell of length h, at the fraction f, W is the line
    between the cell's ends plus sqrt(h f (1 - f)) z, the exact law of a bridge at one time. So
    increments over any times of which no two share a cell are exactly those of a Brownian motion,
    at those very times: nothing is rounded to a grid. Two times within one cell each have the right
    law, but their bridges share one z and are fully correlated.

    A query sums about two normals for each level of the tree, so fewer levels are quicker. Where
    all times are known to be some `spacing` apart, that is enough to choose the depth; without it
    the depth is 31.

    Args:
        seed: see `noise.key`. None or a generator: drawn once, here.
        t0: start, finite.
        t1: end, t0 < t1.
        shape: [B, ...] of the increments; row b is sample `offset + b`, or `ids[b]`.
        spacing: promise that different times are at least this far apart; positive. Cells are then
            at most half as long. Paths of one seed and of different depth are equal, to rounding,
            where the coarser one's cells meet, and between differ by the order of the root of a
            cell. So a solver whose schedule is refined between fixed ends t0 and t1 converges to
            one limit also if the spacing shrinks with the steps; elsewhere keep one spacing.
        dtype: of the increments: float32, float64 (the same values), float16 or bfloat16 (rounded).
        device: of the increments.
        offset: id of the first sample.
        ids: int64 [B], the sample ids, in place of offset.
        memory_format: of the increments.

    Attributes:
        t0: start.
        t1: end.
        shape: of the increments.
        depth: there are 2^depth cells, 5 <= depth <= 31.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: times that are not finite or not in order, or apart by less than 1e-60 or more
            than 1e60; a spacing, seed, offset, ids or shape that does not fit.

    Source:
        Levy (1948), Processus stochastiques et mouvement brownien; Karatzas and Shreve (1991),
        section 2.3.
    """

    def __init__(
        self,
        seed: SeedLike,
        t0: float,
        t1: float,
        shape: Sequence[int],
        *,
        spacing: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        offset: int = 0,
        ids: Tensor | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.t0, self.t1 = check.finite("t0", t0), check.finite("t1", t1)
        check.below("t0", self.t0, "t1", self.t1)
        self._length = check.finite("t1 - t0", self.t1 - self.t0)
        check.within("t1 - t0", self._length, *_LENGTHS)
        # Times outside are clamped by this much, and where they are an end as float32 holds it.
        slack = 2.0 * math.ulp(max(abs(self.t0), abs(self.t1)))
        rounded = check.as_float32(self.t0), check.as_float32(self.t1)
        self._lowest = min(self.t0 - slack, rounded[0])
        self._highest = max(self.t1 + slack, rounded[1])
        self.shape = _shape(shape)
        self.depth = levy.MAX_DEPTH
        self._promised = spacing is not None
        if spacing is not None:
            halvings = math.log2(self._length) - math.log2(check.positive("spacing", spacing))
            wanted = max(math.ceil(halvings) + 1, levy.FIRST_LEVEL)
            self.depth = min(wanted, levy.MAX_DEPTH)
        if dtype not in check.STATE_DTYPES:
            raise TypeError(f"dtype must be float64, float32, float16 or bfloat16; got {dtype}")
        self._key = resolve(seed, self.shape[0], offset=offset, ids=ids, device=device)
        self._key.require_no_draws()
        self._dtype, self._device, self._memory_format = dtype, device, memory_format

    def __call__(self, a: Time, b: Time, *, out: Tensor | None = None) -> Tensor:
        """W(b) - W(a).

        Args:
            a: a time in [t0, t1]; up to 2 ULP (of the larger of |t0|, |t1|) outside, or up to the
                float32 rounding of an end, it is clamped.
                Or a floating tensor [B] on the device of the result, a time for each sample; on a
                GPU it is not read, so a time outside is clamped however far it is, and no promised
                spacing is checked.
            b: likewise. b < a gives the negative of `path(b, a)`, to the bit; b = a gives zeros.
            out: where to write, of the path's shape; its dtype and device are then used.

        Returns:
            A tensor of the path's shape. path(a, b) + path(b, c) is path(a, c) to float32 rounding.

        Raises:
            TypeError: a time or out of the wrong kind.
            ValueError: a time outside [t0, t1] or not finite; different times in one cell though a
                `spacing` was promised; an out of another shape.
        """
        return self._query(a, b, out, unit=False)

    def unit(self, a: Time, b: Time, *, out: Tensor | None = None) -> Tensor:
        """(W(b) - W(a)) / sqrt|b - a|, the unit normal that a sampler asks for.

        Args:
            a: as in a call.
            b: as in a call; it must differ from a. Samples of a tensor with b = a get zeros.
            out: as in a call.

        Returns:
            A tensor of the path's shape, of variance 1.

        Raises:
            TypeError: as a call.
            ValueError: as a call, and where b = a.
        """
        return self._query(a, b, out, unit=True)

    def _query(self, a: Time, b: Time, out: Tensor | None, *, unit: bool) -> Tensor:
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            out = self._output(out)
            starts, ends = self._fractions("a", a, out), self._fractions("b", b, out)
            table = levy.table(starts, ends, self._length, self.depth, unit)
            return noise_sum(out, [], [], table=table, key=self._key, stream=STREAM)
        return self.sum(self.terms(a, b, unit=unit), out)

    def terms(self, a: float, b: float, *, unit: bool = False) -> Terms:
        """What `path(a, b)` sums, or `path.unit(a, b)`: the same for every seed and shape.

        Raises:
            ValueError: as a call.
        """
        start, end = self._fraction("a", a), self._fraction("b", b)
        if start == end and unit:
            raise ValueError(f"b must differ from a for a unit normal; got {a} and {b}")
        if start != end and self._promised and levy.entangled(start, end, self.depth):
            raise ValueError(
                "a and b must be as far apart as the spacing that was promised; "
                f"got {a} and {b}, in a cell of length {self._length * 0.5**self.depth:g}"
            )
        terms = levy.terms if torch.compiler.is_compiling() else levy.cached_terms
        return terms(start, end, self._length, self.depth, unit)

    def sum(self, terms: Terms, out: Tensor | None = None) -> Tensor:
        """The increment of these terms; `out` as in a call."""
        return noise_sum(self._output(out), *terms, key=self._key, stream=STREAM)

    def _output(self, out: Tensor | None) -> Tensor:
        if out is None:
            return torch.empty(
                self.shape,
                dtype=self._dtype,
                device=self._device,
                memory_format=self._memory_format,
            )
        check.tensor("out", out)
        if out.shape != self.shape:
            raise ValueError(f"out must have shape {list(self.shape)}; got {list(out.shape)}")
        if out.requires_grad and torch.is_grad_enabled():
            raise ValueError("out must not require a gradient")
        return out

    def _fraction(self, name: str, value: float) -> float:
        t = check.finite(name, value)
        if not self._lowest <= t <= self._highest:
            raise ValueError(f"{name} must lie in [{self.t0!r}, {self.t1!r}]; got {t!r}")
        return (min(max(t, self.t0), self.t1) - self.t0) / self._length

    def _fractions(self, name: str, value: Time, out: Tensor) -> Tensor:
        batch = self.shape[0]
        if not isinstance(value, Tensor):
            fraction = self._fraction(name, value)
            return torch.full((batch,), fraction, dtype=torch.float64, device=out.device)
        if not value.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating; got {value.dtype}")
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] != batch):
            raise ValueError(
                f"{name} must be a number or have shape [{batch}]; got {list(value.shape)}"
            )
        if value.device != out.device:
            raise ValueError(
                f"{name} must be on the device of the path, {out.device}; got {value.device}"
            )
        t = value.detach().double().expand(batch)
        if t.device.type == "cpu" and not torch.compiler.is_compiling():
            outside = ~((self._lowest <= t) & (t <= self._highest))
            if bool(outside.any()):
                wrong = float(t[outside][0])
                raise ValueError(f"{name} must lie in [{self.t0!r}, {self.t1!r}]; got {wrong!r}")
        return (t.clamp(self.t0, self.t1) - self.t0) / self._length


def _shape(shape: Sequence[int]) -> torch.Size:
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
        raise TypeError(f"shape must be a sequence of ints; got {check.describe(shape)}")
    if len(shape) == 0:
        raise ValueError("shape must have a batch dimension; got []")
    for size in shape:
        check.count("shape", size, least=0)
    return torch.Size(shape)
