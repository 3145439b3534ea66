"""Heun's method for the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.solvers.euler import churn_of, euler_stages

if TYPE_CHECKING:
    from typing_extensions import Unpack


def heun_stages(levels: Sequence[float], to: float) -> tuple[Stage, ...]:
    """Euler's step, then the trapezoidal rule on both slopes; the last step to 0 is Euler's.

    With h = s' - s: x' = (s'/s) x + h/2 (1/s' - 2/s) D - h/(2 s') D'.
    """
    predictor = euler_stages(levels, to)
    if to == 0:
        return predictor
    s, half = levels[-1], 0.5 * (to - levels[-1])
    return (*predictor, Stage(to, to / s, (half * (1 / to - 2 / s), -half / to)))


@described(
    order="2",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="churn",
    source="Karras et al. (2022), algorithms 1 and 2",
)
@sampler
def heun_pf_ode(
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
    """EDM's sampler: order 2, two evaluations a step, one in a step to 0; 2 n - 1 in all.

    Arguments, result and errors are those of `euler_pf_ode`.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), algorithms 1 and 2.
    """
    churn = churn_of(s_churn, s_tmin, s_tmax)
    plan = make_plan(
        "heun_pf_ode",
        check.sigmas("sigmas", sigmas),
        heun_stages,
        churn=churn,
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)
