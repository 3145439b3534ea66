"""Restart sampling: Heun's method that goes back up through an interval of levels by new noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

from cmsolvers import checks as check
from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import Option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Span, Step
from cmsolvers.schedules import karras_sigmas
from cmsolvers.solvers.heun import heun_step

Interval: TypeAlias = tuple[float, float, int, int]
"""(t_min, t_max, steps, times)."""


def _intervals(name: str, value: object) -> tuple[Interval, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a sequence; got {check.describe(value)}")
    found = []
    for i, entry in enumerate(value):
        one = f"{name}[{i}]"
        if not isinstance(entry, Sequence) or isinstance(entry, (str, bytes)) or len(entry) != 4:
            raise TypeError(
                f"{one} must be (t_min, t_max, steps, times); got {check.describe(entry)}"
            )
        t_min = check.positive(f"t_min of {one}", entry[0])
        t_max = check.positive(f"t_max of {one}", entry[1])
        steps = check.count(f"steps of {one}", entry[2])
        times = check.count(f"times of {one}", entry[3])
        check.below(f"t_min of {one}", t_min, "its t_max", t_max)
        found.append((t_min, t_max, steps, times))
    return tuple(found)


def _spans(sigmas: Sequence[float], restarts: tuple[Interval, ...], rho: float) -> list[Span]:
    """Steps down `sigmas`, with the loops of the intervals at the levels they start from."""
    starts = []
    for i, (t_min, t_max, _, _) in enumerate(restarts):
        nearest = -min((abs(s - t_min), -s) for s in sigmas if s > 0)[1]
        if not nearest < t_max:
            raise ValueError(
                f"t_max of restarts[{i}] must be above {nearest:g}, the level of sigmas nearest to "
                f"its t_min; got {t_max:g}"
            )
        starts.append(nearest)
    spans: list[Span] = []
    for i, sigma in enumerate(sigmas):
        if i:
            spans.append((sigmas[i - 1], sigmas[i - 1], sigma, 0))
        for start, (_, t_max, steps, times) in zip(starts, restarts, strict=True):
            if start != sigma:
                continue
            grid = karras_sigmas(steps + 1, start, t_max, rho, append_zero=False).tolist()
            loop = [(start, t_max, grid[1], 0), *((s, s, to, 0) for s, to in pairwise(grid[1:]))]
            spans += loop * times
    return spans


@solver(
    order="2 (weak); 2 without restarts",
    nfe="2 n + 2 sum of steps x times, 1 less where the last level is 0",
    noise="fresh",
    source="Xu et al., Restart Sampling (2023), algorithm 1",
    options=[
        Option(
            "restarts",
            (),
            _intervals,
            "(t_min, t_max, steps, times) for each interval; t_min is moved to the nearest "
            "positive level of `sigmas`, t_max need not be one. Intervals that start at one level "
            "run in the order given. None given is `heun_pf_ode`.",
        ),
        Option(
            "rho",
            7.0,
            check.positive,
            "exponent of the grids inside the intervals, see `karras_sigmas`.",
        ),
    ],
    spans=_spans,
)
def restart(step: Step) -> Form:
    """Restart sampling: Heun's method, and at chosen levels noise up again and Heun down again.

    On reaching the level nearest to t_min, `times` times: noise of size sqrt(t_max^2 - t_min^2)
    lifts the state to t_max, and `steps` steps of Heun's method on a Karras grid take it back.
    Each loop contracts the errors made so far. `callback`, draws of noise and `trajectory` count
    all steps, those of the loops too; the noise of a loop is asked for (t_min, t_max).

    Raises:
        TypeError: an interval that is not four numbers.
        ValueError: t_min not positive and below t_max, steps or times below 1, an interval without
            a level of `sigmas` below its t_max.

    Source: Xu et al., "Restart Sampling for Improving Generative Processes" (2023), algorithm 1.
    """
    return heun_step(step)
