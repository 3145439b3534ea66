"""Ancestral sampling: a step that goes too far down, and noise that comes back up."""

from __future__ import annotations

import math
from collections.abc import Callable

from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import eta as eta_option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.solvers.euler import euler_step

ETA = eta_option(1.0, "0 is the ODE, 1 the noise of the posterior; not negative.")


def down_up(s: float, to: float, eta: float) -> tuple[float, float]:
    """Where the ODE part of a step from s ends, and the noise after it: down^2 + up^2 = to^2.

    up = min(to, eta to sqrt(s^2 - to^2) / s), which for eta = 1 is the posterior's of DDPM.
    """
    share = eta * math.sqrt((s - to) / s * ((s + to) / s))
    if share > 1.0:
        return 0.0, to  # and squares of a large eta overflow
    # 1 - share^2 without the cancellation: to^2 / s^2 for eta = 1
    rest = (1.0 - eta) * (1.0 + eta) + (eta * to / s) ** 2
    return to * math.sqrt(max(0.0, rest)), to * share


def ancestral(step: Step, ode: Callable[[Step, float], Form], eta: float) -> Form:
    """An ODE step to `down`, then noise of size `up`."""
    down, up = down_up(step.sigma, step.to, eta)
    return step.settled(ode(step, down), down) + up * step.z()


@solver(
    order="1 (weak); 1 for eta = 0",
    nfe="n",
    noise="fresh",
    source="Song et al. (2021), appendix F, in the form of DDIM's eq. 16",
    options=[ETA],
)
def euler_ancestral(step: Step, eta: float) -> Form:
    """Ancestral sampling with Euler's step: order 1 (weak), one evaluation per step.

    A step from s to s' is Euler's to down = sqrt(s'^2 - up^2), then noise of size
    up = min(s', eta s' sqrt(s^2 - s'^2) / s). The marginals are those of the probability-flow ODE
    for every eta. For eta in [0, 1] this is `ddim`; above 1 there is more noise than a posterior
    has. A last step to 0 gives D.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
    (2021), appendix F (ancestral sampling for VE); eta as in Song et al., "Denoising Diffusion
    Implicit Models" (2021), eq. 16.
    """
    return ancestral(step, euler_step, eta)
