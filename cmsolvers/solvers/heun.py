"""Heun's method for the probability-flow ODE."""

from __future__ import annotations

from cmsolvers.engine.forms import Form
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step


def heun_step(step: Step) -> Form:
    """x + (s' - s) (d + d') / 2, d' the slope where Euler's step ends; D in a step to 0."""
    if step.to == 0:
        return step.D(step.x, step.sigma)
    d = step.slope(step.x, step.sigma)
    y = step.x + (step.to - step.sigma) * d
    return step.x + (step.to - step.sigma) / 2 * (d + step.slope(y, step.to))


@solver(
    order="2",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="churn",
    source="Karras et al. (2022), algorithms 1 and 2",
)
def heun_pf_ode(step: Step) -> Form:
    """EDM's sampler, Heun's method on dx/dsigma = (x - D)/sigma: order 2, two evaluations per step.

    A last step to 0 is Euler's and takes one: 2 n - 1 in all. In other coordinates it is the
    probability-flow ODE dx/dlevel of their path.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
    (2022), algorithms 1 and 2.
    """
    return heun_step(step)
