"""The default noise of samplers whose steps ask for increments of one Brownian path."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from cmsolvers import noise, ops
from cmsolvers.engine.trace import Trace
from cmsolvers.ops.levy import TREES

_SPACING = 0.5**15
"""Schedules with all levels farther apart than this share of their length in ln sigma see one and
the same path, whatever the levels: refining them keeps it."""


class PathNoise:
    """`noise_sampler(sigma, sigma_next)` of a Brownian path over -ln sigma, for one run.

    The path is `noise.BrownianPath(seed, 0, 1)` at u = ln(s_0 / sigma) / ln(s_0 / s_n), where s_0
    is the first level and s_n the smallest that is not 0.

    Successive queries share a time: a step starts where the last one ended, and a singlestep method
    asks twice from one start. So W is summed up once for each time, from the root of its tree, and
    kept for the next query; that halves the normals.
    The noise has the shape, dtype, layout and device of x.
    """

    def __init__(self, traced: Trace, x: Tensor, seed: noise.SeedLike) -> None:
        levels = {level for level in (*traced.levels, *traced.visited) if level > 0}
        self._first = max(levels)
        self._length = math.log(self._first / min(levels))
        fractions = sorted(map(self._fraction, levels))
        spacing = min(_SPACING, *(b - a for a, b in pairwise(fractions)))
        # The deepest tree may not tell levels apart that are closer still; it is good enough.
        near = spacing if spacing > 0.5**30 else None
        self._path = noise.BrownianPath(seed, 0.0, 1.0, x.shape, spacing=near, device=x.device)
        self._like = x
        self._dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        self._known: dict[float, Tensor] = {}

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """The path's increment, scaled to variance 1."""
        a, b = self._fraction(sigma), self._fraction(sigma_next)
        if a == b:  # a last digit apart: the noise of such a step is next to none
            return self._empty().zero_().to(self._like.dtype)
        spare = [self._known.pop(u) for u in tuple(self._known) if u not in (a, b)]
        for u in (a, b):
            if u not in self._known:
                out = spare.pop() if spare else self._empty()
                self._known[u] = self._path(_root(u), u, out=out)
        inputs, scale = [self._known[a]], 1.0 / math.sqrt(b - a)
        if _root(a) != _root(b):
            inputs.append(self._path(_root(a), _root(b), out=self._empty()))
        row = (scale, -scale, scale)[: 1 + len(inputs)]
        return ops.weighted_step(self._known[b], inputs, row).to(self._like.dtype)

    def _fraction(self, sigma: float) -> float:
        return min(max(math.log(self._first / sigma) / self._length, 0.0), 1.0)

    def _empty(self) -> Tensor:
        return torch.empty_like(self._like, dtype=self._dtype, requires_grad=False)


def _root(u: float) -> float:
    """Where the tree of u begins; nothing but its normals is needed to know W there."""
    return min(math.floor(u * TREES), TREES - 1) / TREES
