"""DPM-Solver++(2S): singlestep, second order on the data prediction, with ancestral noise."""

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
from cmsolvers.solvers.euler import euler_stages

if TYPE_CHECKING:
    from typing_extensions import Unpack


def dpmpp_2s_stages(levels: Sequence[float], to: float) -> tuple[Stage, ...]:
    """X' = (s'/s) x + (1 - s'/s) D_mid, mid = sqrt(s s'), reached the same way with D.

    That is r = 1/2 in the paper, where D itself drops out. A step to 0 gives D.
    """
    if to == 0:
        return euler_stages(levels, to)
    s, middle = levels[-1], math.sqrt(levels[-1]) * math.sqrt(to)
    (half,) = euler_stages(levels, middle)
    return half, Stage(to, to / s, (0.0, (s - to) / s))


@described(
    order="2 (weak); 2 for eta = 0",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="fresh",
    source="Lu et al., DPM-Solver++ (2022), algorithm 1 (2S), with ancestral noise",
)
@sampler
def dpmpp_2s_ancestral(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """DPM-Solver++(2S) with ancestral noise: weak order 2, two evaluations a step, one to 0.

    A step is (2S)'s to `down`, with its second evaluation halfway in ln sigma, then noise of size
    `up`, both as in `euler_ancestral`, whose arguments, result and errors these are. An eta so
    large that down = 0 makes a step one of one evaluation.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), algorithm 1 with r = 1/2; noise as in `euler_ancestral`.
    """
    plan = make_plan(
        "dpmpp_2s_ancestral",
        check.sigmas("sigmas", sigmas),
        Ancestral(check.non_negative("eta", eta), dpmpp_2s_stages),
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)
