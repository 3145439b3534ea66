"""DPM-Solver++(2M) for the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.solvers.exponential import steps_back

if TYPE_CHECKING:
    from typing_extensions import Unpack


def dpmpp_2m_stages(levels: Sequence[float], to: float) -> tuple[Stage, ...]:
    """X' = (s'/s) x + (1 - e^-h) [(1 + 1/(2r)) D - 1/(2r) D_last], r = h_last / h.

    The first step, and the last one to 0, take D alone.
    """
    if to == 0:
        return (Stage(0.0, 0.0, (1.0,)),)
    s = levels[-1]
    h, (_, *back) = steps_back(levels, to, 2)
    gain = -math.expm1(-h)
    past = tuple(0.5 * gain / u for u in back)  # u = -r
    return (Stage(to, to / s, (gain - sum(past),), past),)


@described(
    order="2", nfe="n", noise="none", source="Lu et al., DPM-Solver++ (2022), algorithm 2 (2M)"
)
@sampler
def dpmpp_2m(denoiser: Any, x: Tensor, sigmas: Any, **options: Unpack[Options]) -> Any:
    """DPM-Solver++(2M): order 2 with one evaluation a step, from D and the D before.

    The first step and a last step to 0 are of order 1; the latter gives D. Noise is never drawn.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0.
        options: see `euler_pf_ode`.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError, ValueError: see `euler_pf_ode`.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), algorithm 2.
    """
    plan = make_plan("dpmpp_2m", check.sigmas("sigmas", sigmas), dpmpp_2m_stages, keep=1)
    return run(plan, denoiser, x, **options)
