"""DEIS and iPNDM: multistep methods on slopes d = (x - D) / sigma, which estimate the noise."""

from __future__ import annotations

from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import Option, counted
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.solvers import exponential
from cmsolvers.solvers.lms import from_slopes

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the slopes on an even grid, latest first."""


@solver(
    order="1 to 3 (small first steps; else at most 2)",
    nfe="n",
    source="Zhang & Chen, DEIS (2023), AB-DEIS",
    options=[
        Option(
            "order",
            3,
            counted(1, 3),
            "of convergence, 1 (DDIM) to 3: slopes used, one more than the polynomial's degree.",
        )
    ],
)
def deis(step: Step, order: int) -> Form:
    """AB-DEIS: the last `order` slopes, a polynomial of ln sigma, integrated exactly.

    The method leaves open in which variable the slopes are a polynomial. Here it is ln sigma, in
    which the integrals have a closed form and which no time of the model's training enters; in
    sigma itself the method is `lms`. The order grows over the first steps; a last step to 0 gives
    D.

    Source: Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (2023),
    AB-DEIS.
    """
    if step.to == 0:
        return step.D(step.x, step.sigma)
    # With u = ln(s/sigma)/h, dsigma is s' (-h) e^{h (1 - u)} du: the exponential integrator at -h.
    h, nodes = exponential.steps_back(step.levels, step.to, order)
    return from_slopes(step, [step.to * w for w in exponential.weights(-h, nodes)[1:]])


@solver(
    order="1 to 4 on an even grid of sigma, at most 2 on others",
    nfe="n",
    source="Liu et al., PNDM (2022), linear multistep; Zhang & Chen, DEIS (2023), iPNDM",
    options=[Option("order", 4, counted(1, 4), "1 to 4: slopes used.")],
)
def ipndm(step: Step, order: int) -> Form:
    """iPNDM: Adams and Bashforth's weights of an even grid on the last `order` slopes, on any grid.

    Lower orders take the place of Runge-Kutta steps at the start, so there is one evaluation per
    step. A last step to 0 gives D. The fixed weights keep order 2 where the steps of sigma change
    slowly; `lms` and `deis` follow the grid.

    Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2022);
    Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (2023), iPNDM.
    """
    if step.to == 0:
        return step.D(step.x, step.sigma)
    row = ADAMS_BASHFORTH[min(order, len(step.levels)) - 1]
    return from_slopes(step, [(step.to - step.sigma) * b for b in row[1:]])
