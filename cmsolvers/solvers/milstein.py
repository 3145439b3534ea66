"""Milstein's method for diagonal noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.forms import Form
from cmsolvers.engine.live import held
from cmsolvers.engine.live_run import LiveStep
from cmsolvers.engine.time_solver import time_solver
from cmsolvers.engine.time_steps import TimeStep
from cmsolvers.solvers.euler_maruyama import euler_maruyama_step


@time_solver(
    order="strong 1 (diagonal noise), weak 1; 1 for an ODE",
    nfe="n",
    source="Milstein (1974); Kloeden and Platen (1992), eq. 10.3.1 and 10.3.12",
)
def milstein(step: TimeStep) -> Form:
    """Integrate the Ito equation dx = f dt + g dw: x' = x + f dt + g dW + g g_x (dW^2 - |dt|) / 2.

    Strong order 1 for diagonal noise, that is where element i of g is a function of element i of x
    and of t alone; nothing can check that, and without it the order is 1/2. Where the diffusion
    does not read the state this is Euler-Maruyama, to the bit. Weak order 1. One evaluation of the
    drift per step, one of the diffusion and one of its derivative.

    A diffusion that reads the state must have the shape of x. Its derivative is
    `sde.diffusion_derivative(x, t)` where there is one (a number or the shape of x), else it comes
    from reverse-mode differentiation of the diffusion.

    Raises:
        ValueError: a state-dependent diffusion or a derivative of another shape than x.

    Source: Milstein, "Approximate integration of stochastic differential equations" (1974);
    Kloeden & Platen, "Numerical Solution of Stochastic Differential Equations" (1992), eq. 10.3.12.
    """
    if step.additive:
        return euler_maruyama_step(step)
    assert isinstance(step, LiveStep)
    drift, x = step.drift(step.x, step.t), step.shown(step.x)
    # dW^2 has twice the digits of dW: half precision is left for float32 here.
    wide = torch.promote_types(x.dtype, torch.float32)
    g, slope = diagonal(step.sde, x, step.time(step.t))
    if isinstance(slope, Tensor):
        slope = slope.to(wide)
    z, h = step.normal(step.z(), wide).to(wide), abs(step.dt)
    kick = g.to(wide) * (math.sqrt(h) * z + (0.5 * h) * slope * (z * z - 1.0))
    return step.x + step.dt * drift + held(kick)


def diagonal(sde: Any, x: Tensor, time: Tensor) -> tuple[Tensor, float | Tensor]:
    """(g, dg_i/dx_i): the user's derivative, else the column sums of a diagonal Jacobian."""

    def diffusion(y: Tensor) -> Tensor:
        g = sde.diffusion(y, time)
        if not isinstance(g, Tensor):
            return y.new_full(y.shape, check.finite("diffusion", g))
        return _elementwise("diffusion", g, x)

    own = getattr(sde, "diffusion_derivative", None)
    if own is not None:
        slope = own(x, time)
        if isinstance(slope, Tensor):
            return diffusion(x), _elementwise("diffusion_derivative", slope, x)
        return diffusion(x), check.finite("diffusion_derivative", slope)
    with torch.enable_grad():
        g, pull = torch.func.vjp(diffusion, x)[:2]
        return g, pull(torch.ones_like(g))[0]


def _elementwise(name: str, value: Tensor, x: Tensor) -> Tensor:
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must return a floating tensor; it returned {value.dtype}")
    if value.device != x.device:
        raise ValueError(
            f"{name} must return a tensor on the device of x, {x.device}; "
            f"it returned one on {value.device}"
        )
    if value.shape != x.shape:
        raise ValueError(
            f"{name} must return the shape of x, {list(x.shape)}, where it reads the state "
            f"(diagonal noise); it returned {list(value.shape)}"
        )
    return value
