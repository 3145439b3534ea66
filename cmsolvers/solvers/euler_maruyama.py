"""The Euler-Maruyama method for any SDE or ODE, forward or reverse in time."""

from __future__ import annotations

from cmsolvers.engine.forms import Form
from cmsolvers.engine.time_solver import time_solver
from cmsolvers.engine.time_steps import TimeStep


def euler_maruyama_step(step: TimeStep) -> Form:
    """x + f dt + g dW."""
    drift = step.drift(step.x, step.t)
    return step.x + step.dt * drift + step.diffusion(step.x, step.t) * step.W()


@time_solver(
    order="strong 1/2 (1 for additive noise), weak 1; 1 for an ODE",
    nfe="n",
    source="Maruyama (1955); Kloeden and Platen (1992), section 10.2",
)
def euler_maruyama(step: TimeStep) -> Form:
    """Integrate dx = drift(x, t) dt + diffusion(t) dw: x' = x + f dt + g sqrt|dt| z.

    Strong order 1/2, and 1 where the diffusion does not depend on the state; weak order 1; order 1
    for an ODE. One evaluation of the drift per step. Step i uses draw i of noise stream 1. With
    `noise.BrownianPath(...).unit` as noise_sampler the path is kept when the steps are refined.

    Source: Maruyama, "Continuous Markov processes and stochastic equations" (1955); Kloeden &
    Platen, "Numerical Solution of Stochastic Differential Equations" (1992), section 10.2.
    """
    return euler_maruyama_step(step)
