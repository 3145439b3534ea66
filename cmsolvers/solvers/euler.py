"""Euler's method for the probability-flow ODE."""

from __future__ import annotations

from cmsolvers.engine.forms import Form
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step


def euler_step(step: Step, to: float) -> Form:
    """x + (s' - s) d with the slope d = (x - D) / s; D in a step to 0."""
    if to == 0:
        return step.D(step.x, step.sigma)
    return step.x + (to - step.sigma) * step.slope(step.x, step.sigma)


@solver(
    order="1",
    nfe="n",
    noise="churn",
    source="Karras et al. (2022), algorithm 2 without correction",
)
def euler_pf_ode(step: Step) -> Form:
    """Euler's method on dx/dsigma = (x - D)/sigma: order 1, one evaluation per step.

    In other coordinates it is the probability-flow ODE dx/dlevel of their path.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), algorithm 2 without its correction.
    """
    return euler_step(step, step.to)
