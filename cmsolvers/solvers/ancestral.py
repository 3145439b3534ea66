"""Ancestral sampling: an ODE step that goes too far down, and noise that comes back up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Formula, Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler
from cmsolvers.solvers.euler import euler_stages

if TYPE_CHECKING:
    from typing_extensions import Unpack


def down_up(s: float, to: float, eta: float) -> tuple[float, float]:
    """Where the ODE part of a step from s ends, and the noise after it: down^2 + up^2 = to^2.

    up = min(to, eta to sqrt(s^2 - to^2) / s), which for eta = 1 is the posterior's of DDPM.
    """
    share = min(1.0, eta * math.sqrt((s - to) / s * ((s + to) / s)))
    # 1 - share^2 without the cancellation: to^2 / s^2 for eta = 1
    rest = (1.0 - eta) * (1.0 + eta) + (eta * to / s) ** 2
    return to * math.sqrt(max(0.0, rest)), to * share


@dataclass(frozen=True, slots=True)
class Ancestral:
    """The stages of an ODE formula from s to `down`, then noise of weight `up`."""

    eta: float
    ode: Formula

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """Stages for the next level; the ODE formula sees `down` in its place."""
        down, up = down_up(levels[-1], to, self.eta)
        *inner, last = self.ode(levels, down)
        return (*inner, replace(last, to=to, w_z=up))


@described(
    order="1 (weak); 1 for eta = 0",
    nfe="n",
    noise="fresh",
    source="Song et al. (2021), appendix F, in the form of DDIM's eq. 16",
)
@sampler
def euler_ancestral(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """Ancestral sampling with Euler's step: order 1 (weak), one evaluation a step.

    A step from s to s' is Euler's to down = sqrt(s'^2 - up^2), then noise of size
    up = min(s', eta s' sqrt(s^2 - s'^2) / s). The marginals are those of the probability-flow ODE
    for every eta. For eta in [0, 1] this is `ddim`; above 1 there is more noise than a posterior
    has.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0; a step there gives D.
        eta: 0 is Euler's method, 1 the posterior's noise; not negative.
        s_noise: factor on the noise.
        options: see `euler_pf_ode`.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: see `euler_pf_ode`.
        ValueError: eta negative; see `euler_pf_ode`.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
    (2021), appendix F (ancestral sampling for VE); eta as in Song et al., "Denoising Diffusion
    Implicit Models" (2021), eq. 16.
    """
    plan = make_plan(
        "euler_ancestral",
        check.sigmas("sigmas", sigmas),
        Ancestral(check.non_negative("eta", eta), euler_stages),
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)
