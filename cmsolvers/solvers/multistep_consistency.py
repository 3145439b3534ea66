"""Sampling from a consistency function, in one step or many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from cmsolvers import checks as check
from cmsolvers.denoisers import ConsistencyFunction
from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import Option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Span, Step


def _spans(sigmas: Sequence[float], sigma_min: float) -> list[Span]:
    """One step per level; the last one ends with f itself, here as level 0."""
    levels = [max(s, sigma_min) for s in sigmas if s > 0]
    return [(s, s, to, 0) for s, to in pairwise((*levels, 0.0))]


def _same_end(f: object, sigma_min: float) -> None:
    if isinstance(f, ConsistencyFunction) and f.sigma_min != sigma_min:
        raise ValueError(
            f"sigma_min must be that of f: pass sigma_min={f.sigma_min:g}; got {sigma_min:g}"
        )


@solver(
    order="one-step map",
    nfe="n",
    noise="fresh",
    source="Song et al., Consistency Models (2023), algorithm 1",
    options=[
        Option("sigma_min", 0.002, check.positive, "the level where f is the identity, positive.")
    ],
    spans=_spans,
    model="f",
    least=1,
    keeps_spread=False,  # f ends at sigma_min, not at 0
    checked=_same_end,
)
def consistency_sample(step: Step, sigma_min: float) -> Form:
    """Multistep consistency sampling: f at each level, noised to the next in between.

    The next state is f + sqrt(s'^2 - sigma_min^2) z; the last step gives f.

    Args:
        x: [B, ...] with standard deviation sigmas[0] of noise on it. Never written to.
        sigmas: strictly descending, at least one: one level is one step. Levels below sigma_min
            count as sigma_min, and a 0 at the end is left out, because f is the identity there.

    Returns:
        f at the last level; with `return_info` or `trajectory` also an `Info`, whose NFE is the
        number of levels. A trajectory holds the noised state at each of them, and f as level 0.

    Raises:
        ValueError: sigma_min not that of a `ConsistencyFunction`.

    Source: Song et al., "Consistency Models" (2023), algorithm 1.
    """
    f, end, to = step.D(step.x, step.sigma), step.path.ratio(sigma_min), step.path.ratio(step.to)
    if step.to == 0:
        return f
    up = math.sqrt(max(0.0, (to - end) * (to + end)))
    return step.path.alpha(step.to) * (f + up * step.z())
