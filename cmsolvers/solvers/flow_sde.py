"""The SDE of Flow-GRPO: Euler-Maruyama on a flow model's reverse SDE."""

from __future__ import annotations

import math

from cmsolvers.denoisers.protocol import Denoiser
from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import eta as eta_option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.processes.coordinates import FLOW, coordinates_of


def _flowing(denoiser: Denoiser, **_: object) -> None:
    path = coordinates_of(denoiser)
    if path != FLOW:
        raise ValueError(
            f"denoiser must be in flow coordinates, as denoisers.from_flow is; got one in {path}"
        )


@solver(
    order="1 (weak); 1 for eta = 0",
    nfe="n",
    noise="fresh",
    source="Liu et al., Flow-GRPO (2025), section 4.2",
    options=[eta_option(0.7, "a of the noise s(t) = a sqrt(t / (1 - t)); 0 is the ODE.")],
    keeps_spread=False,
    checked=_flowing,
)
def flow_sde(step: Step, eta: float) -> Form:
    """Euler-Maruyama on the SDE of a flow model with noise s(t) = eta sqrt(t / (1 - t)).

    x' = x + [v + s^2 / (2 t) (x + (1 - t) v)] dt + s sqrt|dt| z with the velocity v, dt = t' - t;
    the marginals of the SDE are those of the flow for every eta. From t = 1, where s would be
    infinite, s is eta sqrt(t / (1 - t')). It is what reinforcement learning on flow models samples
    with (`log_prob=True`); for samples alone, `dpmpp_2m_sde` needs fewer steps. The denoiser must
    be in flow coordinates. A last step to 0 gives D, without noise.

    Source: Liu et al., "Flow-GRPO: Training Flow Matching Models via Online RL" (2025), section
    4.2.
    """
    t, to = step.sigma, step.to
    if to == 0:
        return step.D(step.x, t)
    v, dt = step.slope(step.x, t), to - t
    square = eta * eta * t / (1.0 - (to if t == 1.0 else t))
    pull = 0.5 * square / t * dt
    mean = (1.0 + pull) * step.x + (dt + pull * (1.0 - t)) * v
    return mean + math.sqrt(square * -dt) * step.z()
