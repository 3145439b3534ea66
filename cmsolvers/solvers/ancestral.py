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


def down_up(step: Step, to: float, eta: float) -> tuple[float, float]:
    """The level where the ODE part of a step ends, and the size of the noise after it.

    With the ratios r = sigma / alpha, the variances add up: r_down^2 + up^2 = r'^2, where
    up = min(r', eta r' sqrt(r^2 - r'^2) / r), which for eta = 1 is the posterior's of DDPM.
    """
    part, after = step.path.ratio(to) / step.path.ratio(step.sigma), step.path.ratio(to)
    share = eta * math.sqrt(noise_share(step, to))
    if share > 1.0:
        return 0.0, after  # and squares of a large eta overflow
    # 1 - share^2 without the cancellation: r'^2 / r^2 for eta = 1
    rest = (1.0 - eta) * (1.0 + eta) + (eta * part) ** 2
    return step.path.level(after * math.sqrt(max(0.0, rest))), after * share


def noise_share(step: Step, to: float) -> float:
    """1 - r'^2 / r^2 of the ratios sigma / alpha at the start of a step and at a later level."""
    r, after = step.path.ratio(step.sigma), step.path.ratio(to)
    return (r - after) / r * ((r + after) / r) if math.isfinite(r) else 1.0


def lift(step: Step, y: Form, down: float, to: float, up: float, z: Form) -> Form:
    """The state at `to` from one at `down`: alpha of it grows or shrinks, and noise is added."""
    path = step.path
    return path.alpha(to) / path.alpha(down) * y + path.alpha(to) * up * z


def ancestral(step: Step, ode: Callable[[Step, float], Form], eta: float) -> Form:
    """An ODE step to `down`, then noise of size `up`."""
    down, up = down_up(step, step.to, eta)
    return lift(step, step.settled(ode(step, down), down), down, step.to, up, step.z())


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
    for every eta. For eta in [0, 1] this is `ddim`, in Karras and flow coordinates; above 1 there
    is more noise than a posterior has. A last step to 0 gives D.

    Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
    (2021), appendix F (ancestral sampling for VE); eta as in Song et al., "Denoising Diffusion
    Implicit Models" (2021), eq. 16.
    """
    return ancestral(step, euler_step, eta)
