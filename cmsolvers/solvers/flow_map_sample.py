"""Sampling from a flow map f_{t->s}: any number of steps, with or without noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from cmsolvers import checks as check
from cmsolvers.denoisers.flow_map_base import end_of, require_two_times
from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import Option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step


def _where_it_ends(f: Callable[..., object], gamma: float) -> dict[str, object]:
    """The level where a function of one time ends, None for a map of two."""
    end = end_of(f)
    if end is None:
        require_two_times("f", f)
    return {"end": end}


@solver(
    order="exact where the map is",
    nfe="n",
    noise="fresh",
    source="Kim et al., Consistency Trajectory Models (2024), algorithm 3",
    options=[
        Option(
            "gamma",
            0.0,
            partial(check.within, low=0.0, high=1.0),
            "how much of the noise is fresh after each step, in [0, 1]: 0 none, f_{t->s} alone; 1 "
            "all, to clean data and back, which is multistep consistency sampling.",
        )
    ],
    space="map",
    model="f",
    keeps_spread=False,  # a function of one time ends at its sigma_min, not at 0
    checked=_where_it_ends,
)
def flow_map_sample(step: Step, gamma: float, end: float | None) -> Form:
    """Flow map sampling: from each time to the next, or below it and back with fresh noise.

    From t to s the map goes to the level where sigma / alpha is sqrt(1 - gamma^2) times that of s;
    noise of deviation gamma sigma(s) lifts the state to s. Where the map is exact every gamma
    samples the exact law, in one step as in many; where it is not, noise forgets earlier errors.

    Args:
        f: `f(x, t, s, **extra_args) -> x` at s, times of shape [B], in float32 or in float64 where
            x is that. A `FlowMap` (`AverageVelocity`, `TrigFlowMap`, ...) becomes part of the step.
            So does a `ConsistencyFunction`, or a `FlowMap` of one time, which always goes to clean
            data: more than one step takes gamma = 1. An attribute `coordinates` says what states
            and times are in, as for denoisers.
        x: [B, ...] at time times[0], in the coordinates of f: times[0] z in Karras ones, z at t = 1
            of flow ones; float64, float32, float16 or bfloat16. Never written to. Where it is of
            half precision, the states inside the run are float32; f sees them in the dtype of x,
            and the result is rounded once.
        times: levels in the coordinates of f, strictly descending, at least two: two are one step.
            The last may be 0, for clean data. A tensor or a sequence, read once and kept in float64
            on the host.
        extra_args: dict of further keyword arguments for f, such as labels or a guidance scale:
            numbers or tensors.
        callback: called once per step, after its evaluation, with a dict of i, sigma, sigma_hat
            (the time of x, twice), x (the state, float32 at least) and denoised (where f took it,
            before noise). What it raises ends the run.

    Raises:
        ValueError: gamma below 1 for a function of one time in more than one step, or times below
            its sigma_min.

    Source: Kim et al., "Consistency Trajectory Models" (2024), section 3.3 and algorithm 3; Song et
    al., "Consistency Models" (2023), algorithm 1, for gamma = 1.
    """
    path, to = step.path, step.to
    if end is not None:
        _check_one_time(step, gamma, end)
        state = step.map(step.x, step.sigma, end)
        if to <= end:
            return state
        kept, up = path.noised_to(end, to)
        return kept * state + up * step.z()
    below = path.level(math.sqrt((1.0 - gamma) * (1.0 + gamma)) * path.ratio(to)) if gamma else to
    state = step.map(step.x, step.sigma, below)
    if gamma == 0.0 or to == 0.0:
        return state
    return path.alpha(to) / path.alpha(below) * state + gamma * path.sigma(to) * step.z()


def _check_one_time(step: Step, gamma: float, end: float) -> None:
    if step.sigma < end or 0.0 < step.to < end:
        low = min(level for level in (step.sigma, step.to) if level)
        raise ValueError(f"times must not be below sigma_min of f, {end:g}; got {low:g}")
    if step.to > end and gamma != 1.0:
        raise ValueError(
            "gamma must be 1 for a function f of one time, which goes to clean data and back with "
            f"noise, but for one step to 0; got {gamma:g}"
        )
