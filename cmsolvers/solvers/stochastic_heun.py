"""Heun's method for SDEs in the sense of Stratonovich."""

from __future__ import annotations

from cmsolvers.engine.forms import Form
from cmsolvers.engine.time_solver import time_solver
from cmsolvers.engine.time_steps import TimeStep


@time_solver(
    order="strong 1 (commutative noise), weak 1; 2 for an ODE",
    nfe="2 n",
    source="Rümelin (1982); Kloeden and Platen (1992), section 11.1 and 15.5",
)
def stochastic_heun(step: TimeStep) -> Form:
    """Integrate dx = f(x, t) dt + g(x, t) o dw, in the sense of Stratonovich.

    y = x + f dt + g dW, then x' = x + (f + f(y, t')) dt / 2 + (g + g(y, t')) dW / 2 with the same
    dW = sqrt|dt| z. Strong order 1 where the noise commutes: g without the state (then Ito and
    Stratonovich are the same equation), or each element of g a function of its own element of x;
    else 1/2. Weak order 1, and 2 for linear equations with additive noise; order 2 for an ODE. Two
    evaluations of the drift and of the diffusion per step, at every one of `ts`, the last too.

    An Ito equation with diffusion g(x) needs the drift f - g g_x / 2 here.

    Source: Rümelin, "Numerical treatment of stochastic differential equations" (1982); Kloeden &
    Platen, "Numerical Solution of Stochastic Differential Equations" (1992).
    """
    dw = step.W()
    f, g_dw = step.drift(step.x, step.t), step.diffusion(step.x, step.t) * dw
    y = step.x + step.dt * f + g_dw
    f = f + step.drift(y, step.to)
    g_dw = g_dw + step.diffusion(y, step.to) * dw
    return step.x + step.dt / 2 * f + 0.5 * g_dw
