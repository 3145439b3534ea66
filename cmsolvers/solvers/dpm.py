"""DPM-Solver-2, which in Karras coordinates is the midpoint rule at the geometric mean of sigma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.solvers.ancestral import Ancestral
from cmsolvers.solvers.euler import churn_of, euler_stages

if TYPE_CHECKING:
    from typing_extensions import Unpack


def on_denoised(levels: Sequence[float], slopes: Sequence[Sequence[float]]) -> tuple[Stage, ...]:
    """Rows over x and D for a Runge-Kutta step that is given over slopes.

    Args:
        levels: of y_0 = x, y_1, ..., positive but for the last.
        slopes: rows a_k of y_k = x + sum_j a_kj (y_j - D_j) / levels[j], k from 1; each sums to
            levels[k] - levels[0], so that y_k has (levels[k] / levels[0]) x.
    """
    denoised: list[list[float]] = [[]]  # of each y_j, its weights on D
    stages = []
    for to, row in zip(levels[1:], slopes, strict=True):
        weights = [0.0] * len(row)
        for j, slope in enumerate(row):
            rate = slope / levels[j]
            weights[j] -= rate
            for m, w in enumerate(denoised[j]):
                weights[m] += rate * w
        denoised.append(weights)
        stages.append(Stage(to, to / levels[0], tuple(weights)))
    return tuple(stages)


def dpm_2_stages(levels: Sequence[float], to: float) -> tuple[Stage, ...]:
    """X' = x + (s' - s) d(mid), mid = sqrt(s s'), reached by Euler; a step to 0 is Euler's."""
    if to == 0:
        return euler_stages(levels, to)
    s = levels[-1]
    middle = math.sqrt(s) * math.sqrt(to)
    return on_denoised((s, middle, to), ((middle - s,), (0.0, to - s)))


@described(
    order="2",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="churn",
    source="Lu et al., DPM-Solver (2022), algorithm 1; churn: Karras et al. (2022), algorithm 2",
)
@sampler
def dpm_2(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """DPM-Solver-2: order 2, two evaluations a step, one in a step to 0.

    The second evaluation is halfway in ln sigma, at sqrt(s s'), and its slope makes the whole step.
    Arguments, result and errors are those of `euler_pf_ode`.

    Source: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
    Around 10 Steps" (2022), algorithm 1; the churn is that of Karras et al. (2022), algorithm 2.
    """
    churn = churn_of(s_churn, s_tmin, s_tmax)
    plan = make_plan(
        "dpm_2",
        check.sigmas("sigmas", sigmas),
        dpm_2_stages,
        churn=churn,
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)


@described(
    order="2 (weak); 2 for eta = 0",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="fresh",
    source="Lu et al., DPM-Solver (2022), algorithm 1, with ancestral noise",
)
@sampler
def dpm_2_ancestral(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """DPM-Solver-2 with ancestral noise: weak order 2, two evaluations a step, one in a step to 0.

    A step is that of `dpm_2` to `down`, then noise of size `up`, both as in `euler_ancestral`,
    whose arguments, result and errors these are. An eta so large that down = 0 makes a step one of
    one evaluation.

    Source: Lu et al., "DPM-Solver" (2022), algorithm 1; noise as in `euler_ancestral`.
    """
    plan = make_plan(
        "dpm_2_ancestral",
        check.sigmas("sigmas", sigmas),
        Ancestral(check.non_negative("eta", eta), dpm_2_stages),
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)
