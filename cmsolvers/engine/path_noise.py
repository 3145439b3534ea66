"""The default noise of samplers whose steps ask for increments of one Brownian path."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cmsolvers import noise, ops
from cmsolvers.engine.trace import Trace, state_dtype
from cmsolvers.noise.brownian import Terms
from cmsolvers.ops.levy import TREES

_SPACING = 0.5**15
"""Schedules with all levels farther apart than this share of their length in ln sigma see one and
the same path, whatever the levels: refining them keeps it."""


class PathNoise:
    """`noise_sampler(sigma, sigma_next)` of a Brownian path over -ln sigma, for one run.

    The path is `noise.BrownianPath(seed, 0, 1)` at u = ln(s_0 / sigma) / ln(s_0 / s_n), where s_0
    is the first level and s_n the smallest level, asked or reached, that is not 0.

    Successive queries share a time: a step starts where the last one ended, and a singlestep method
    asks twice from one start. So W is summed up once for each time, from the root of its tree, and
    kept for the next query; that halves the normals.
    The noise has the shape, layout and device of x, and the dtype of the states.
    """

    def __init__(self, traced: Trace, x: Tensor, seed: noise.SeedLike) -> None:
        self._levels, spacing, self._spans = _plan(traced)
        self._path = noise.BrownianPath(seed, 0.0, 1.0, x.shape, spacing=spacing, device=x.device)
        self._like, self._dtype = x, state_dtype(x)
        self._known: dict[float, Tensor] = {}

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """The path's increment, scaled to variance 1."""
        span = self._spans.get((sigma, sigma_next))
        if span is None:
            ends = self._levels[sigma], self._levels[sigma_next]
            span = self._spans[sigma, sigma_next] = _span(self._path, *ends)
        ends, sums, between, row = span
        if not row:
            return self._empty().zero_()
        known = self._known
        spare = [known.pop(u) for u in tuple(known) if u not in ends]
        for u, terms in zip(ends, sums, strict=True):
            if u not in known:
                known[u] = self._path.sum(terms, spare.pop() if spare else self._empty())
        inputs = [known[ends[0]]]
        if between is not None:
            inputs.append(self._path.sum(between, self._empty()))
        return ops.weighted_step(known[ends[1]], inputs, row)

    def _empty(self) -> Tensor:
        return torch.empty_like(self._like, dtype=self._dtype, requires_grad=False)


class _Span(NamedTuple):
    """How the noise of a step is made, whatever the seed.

    Attributes:
        ends: both times u.
        sums: W at each of them, less that at the root of its tree.
        between: W from the root of the first to that of the second, where these differ.
        row: weights of W at the second time, at the first, and of `between`; none for no noise.
    """

    ends: tuple[float, float]
    sums: tuple[Terms, Terms]
    between: Terms | None
    row: tuple[float, ...]


def _span(path: noise.BrownianPath, a: float, b: float) -> _Span:
    sums = path.terms(_root(a), a), path.terms(_root(b), b)
    if a == b:  # a last digit apart: the noise of such a step is next to none
        return _Span((a, b), sums, None, ())
    scale = 1.0 / math.sqrt(b - a)
    if _root(a) == _root(b):
        return _Span((a, b), sums, None, (scale, -scale))
    return _Span((a, b), sums, path.terms(_root(a), _root(b)), (scale, -scale, scale))


_Plan: TypeAlias = tuple[dict[float, float], float | None, dict[tuple[float, float], _Span]]
_PLANS: WeakKeyDictionary[Trace, _Plan] = WeakKeyDictionary()


def _plan(traced: Trace) -> _Plan:
    """The time u of each level, the spacing of the path, and what is known of its spans so far."""
    known = _PLANS.get(traced)
    if known is not None:
        return known
    asked = [level for normal in traced.normals for level in normal.span]
    if not all(level > 0 for level in asked):
        raise ValueError("noise of a Brownian path must not be drawn in a step to 0")
    levels = {level for level in (*traced.levels, *traced.visited, *asked) if level > 0}
    first = max(levels)
    length = math.log(first / min(levels))
    times = {s: min(max(math.log(first / s) / length, 0.0), 1.0) for s in levels}
    apart = min(_SPACING, *(b - a for a, b in pairwise(sorted(times.values()))))
    # The deepest tree may not tell levels apart that are closer still; it is good enough.
    plan: _Plan = times, apart if apart > 0.5**30 else None, {}
    return _PLANS.setdefault(traced, plan)


def _root(u: float) -> float:
    """Where the tree of u begins; nothing but its normals is needed to know W there."""
    return min(math.floor(u * TREES), TREES - 1) / TREES
