"""The SDE of Flow-GRPO: Euler-Maruyama on a flow model's reverse SDE."""

from __future__ import annotations

import math
from functools import partial

from cmsolvers import checks as check
from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import Option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.processes.coordinates import FLOW


@solver(
    order="1 (weak); 1 for eta = 0",
    nfe="n",
    noise="fresh",
    source="Liu et al., Flow-GRPO (2025), section 4.2",
    options=[
        Option(
            "eta",
            0.7,
            partial(check.within, low=0.0, high=100.0),
            "a of the noise s(t) = a sqrt(t / (1 - t)), in [0, 100]; 0 is the ODE.",
        )
    ],
    keeps_spread=False,
)
def flow_sde(step: Step, eta: float) -> Form:
    """Euler-Maruyama on the SDE of a flow model with noise s(t) = eta sqrt(t / (1 - t)).

    x' = x + [v + s^2 / (2 t) (x + (1 - t) v)] dt + s sqrt|dt| z with the velocity v, dt = t' - t;
    the marginals of the SDE are those of the flow for every eta. From t = 1, where s would be
    infinite, s is eta sqrt(t / (1 - t')): the first step then has noise of size eta however short
    it is, and the law converges slowly with the steps. It is what reinforcement learning on flow
    models samples with (`log_prob=True`); for samples alone, `dpmpp_2m_sde` needs fewer steps. A
    last step to 0 gives D, without noise. Of a denoiser in other coordinates the states and levels
    are taken to flow coordinates and back.

    Source: Liu et al., "Flow-GRPO: Training Flow Matching Models via Online RL" (2025), section
    4.2.
    """
    d = step.D(step.x, step.sigma)
    if step.to == 0:
        return d
    t, to = _time(step, step.sigma), _time(step, step.to)
    dt, x = to - t, t / step.path.sigma(step.sigma) * step.x
    v = (x - d) / t
    square = eta * eta * t / (1.0 - (to if t == 1.0 else t))
    pull = 0.5 * square / t * dt
    mean = (1.0 + pull) * x + (dt + pull * (1.0 - t)) * v
    return step.path.sigma(step.to) / to * (mean + math.sqrt(square * -dt) * step.z())


def _time(step: Step, level: float) -> float:
    """The time of a rectified flow at which sigma / alpha is that of a level."""
    return level if step.path == FLOW else FLOW.level(step.path.ratio(level))
