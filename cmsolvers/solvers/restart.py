"""Restart sampling: Heun's method that goes back up through an interval of levels by new noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Plan, Step, check_range
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.schedules import karras_sigmas
from cmsolvers.solvers.heun import heun_stages

if TYPE_CHECKING:
    from typing_extensions import Unpack

Interval: TypeAlias = tuple[float, float, int, int]
"""(t_min, t_max, steps, times)."""


@lru_cache(maxsize=128)
def restart_plan(
    sigmas: tuple[float, ...], intervals: tuple[Interval, ...], s_noise: float, rho: float
) -> Plan:
    """Heun's steps down `sigmas`, with the loops of `intervals` at the levels they start from."""
    check_range(sigmas)
    steps: list[Step] = []
    for i, sigma in enumerate(sigmas):
        if i:
            steps.append(_heun(sigmas[i - 1], sigmas[i - 1], 0.0, sigma))
        for t_min, t_max, count, times in intervals:
            if t_min != sigma:
                continue
            grid = karras_sigmas(count + 1, t_min, t_max, rho, append_zero=False).tolist()
            noise = s_noise * math.sqrt((t_max - t_min) * (t_max + t_min))
            for _ in range(times):
                steps.append(_heun(t_min, t_max, noise, grid[1]))
                steps += [_heun(s, s, 0.0, to) for s, to in pairwise(grid[1:])]
    return Plan("restart", tuple(steps))


def _heun(sigma: float, sigma_hat: float, noise: float, to: float) -> Step:
    stages = heun_stages((sigma_hat,), to)
    for stage in stages:
        stage.check(sigma_hat)
    return Step(sigma, sigma_hat, noise, stages)


def _intervals(value: Any, sigmas: Sequence[float]) -> tuple[Interval, ...]:
    """Checked intervals, each t_min moved to the nearest positive level."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"restarts must be a sequence; got {check.describe(value)}")
    found = []
    for i, entry in enumerate(value):
        name = f"restarts[{i}]"
        if not isinstance(entry, Sequence) or isinstance(entry, (str, bytes)) or len(entry) != 4:
            raise TypeError(
                f"{name} must be (t_min, t_max, steps, times); got {check.describe(entry)}"
            )
        t_min = check.positive(f"t_min of {name}", entry[0])
        t_max = check.positive(f"t_max of {name}", entry[1])
        steps = check.count(f"steps of {name}", entry[2])
        times = check.count(f"times of {name}", entry[3])
        check.below(f"t_min of {name}", t_min, "its t_max", t_max)
        nearest = min((s for s in sigmas if s > 0), key=lambda s: abs(s - t_min))
        if not nearest < t_max:
            raise ValueError(
                f"t_max of {name} must be above {nearest:g}, the level of sigmas nearest to its "
                f"t_min; got {t_max:g}"
            )
        found.append((nearest, t_max, steps, times))
    return tuple(found)


@described(
    order="2 (weak); 2 without restarts",
    nfe="2 n + 2 sum of steps x times, 1 less where the last level is 0",
    noise="fresh",
    source="Xu et al., Restart Sampling (2023), algorithm 1",
)
@sampler
def restart(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    restarts: Sequence[tuple[float, float, int, int]] = (),
    s_noise: float = 1.0,
    rho: float = 7.0,
    **options: Unpack[Options],
) -> Any:
    """Restart sampling: Heun's method, and at chosen levels noise up again and Heun down again.

    On reaching the level nearest to t_min, `times` times: noise of size sqrt(t_max^2 - t_min^2)
    lifts the state to t_max, and `steps` steps of Heun's method on a Karras grid take it back.
    Each loop contracts the errors made so far. `callback`, draws of noise and `trajectory` count
    all steps, those of the loops too; the noise of a loop is asked for (t_min, t_max).

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0.
        restarts: (t_min, t_max, steps, times) for each interval; t_min is moved to the nearest
            positive level of `sigmas`, t_max need not be one. Intervals that start at one level run
            in the order given. None given is `heun_pf_ode`.
        s_noise: factor on the noise.
        rho: exponent of the grids inside the intervals, see `karras_sigmas`.
        options: see `euler_pf_ode`.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: an interval that is not four numbers; see `euler_pf_ode`.
        ValueError: t_min not positive and below t_max, steps or times below 1, an interval without
            a level of `sigmas` below its t_max; see `euler_pf_ode`.

    Source: Xu et al., "Restart Sampling for Improving Generative Processes" (2023), algorithm 1.
    """
    levels = check.sigmas("sigmas", sigmas)
    plan = restart_plan(
        levels,
        _intervals(restarts, levels),
        check.non_negative("s_noise", s_noise),
        check.positive("rho", rho),
    )
    return run(plan, denoiser, x, **options)
