"""The stochastic Runge-Kutta method SRA1: strong order 1.5 for additive noise."""

from __future__ import annotations

import math

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.engine.fields import check_additive
from cmsolvers.engine.forms import Form
from cmsolvers.engine.live import held
from cmsolvers.engine.live_run import LiveStep
from cmsolvers.engine.options import NoiseSampler, Option
from cmsolvers.engine.time_solver import time_solver
from cmsolvers.engine.time_steps import TimeStep

_ROOT3 = math.sqrt(3.0)


@time_solver(
    order="strong 1.5 (additive noise), weak 2; 2 for an ODE",
    nfe="2 n",
    source="Rößler (2010), scheme SRA1",
    options=[
        Option(
            "area_sampler",
            None,
            check.optional_function,
            "`area_sampler(t, t_next) -> Tensor`, unit normal in the shape of x, the space-time "
            "Levy area of the step over its standard deviation sqrt(h / 12): "
            "I_10 = h^1.5 (z + area / sqrt 3) / 2 with the z of `noise_sampler`. Of the two, what "
            "is not given is built in: the law is right then, but the path is not kept when the "
            "steps are refined, because increments do not hold the area.",
        )
    ],
    draws=lambda **_: 2,
    checked=lambda sde, *_, **__: check_additive(sde),
)
def sra1(step: TimeStep, area_sampler: NoiseSampler | None) -> Form:
    """Integrate dx = f(x, t) dt + g(t) dw with strong order 1.5, g free of the state.

    H = x + 3/4 f dt + 3/2 g(t') I_10 / h, x' = x + (f + 2 f(H, t + 3/4 dt)) dt / 3 + g(t') I_1 +
    (g(t) - g(t')) I_10 / h, where h = |dt|, I_1 = W(t') - W(t) and I_10 is the integral of
    W - W(t) over the step. Weak order 2; order 2 for an ODE. Two evaluations of the drift per step;
    the diffusion is read at every one of `ts`, the last too. Step i uses the draws 2 i and 2 i + 1
    of noise stream 1. The reverse SDE of a diffusion model is such an equation.

    Raises:
        ValueError: a diffusion that depends on the state.

    Source: Rößler, "Runge-Kutta methods for the strong approximation of solutions of stochastic
    differential equations" (2010), scheme SRA1; Kloeden & Platen (1992), section 10.4, for the
    joint law of I_1 and I_10.
    """
    x, dt, root = step.x, step.dt, math.sqrt(abs(step.dt))
    a, b = _normals(step, area_sampler)
    i_1, i_10 = root * (_ROOT3 / 2 * a + 0.5 * b), root / _ROOT3 * a  # I_10 over h
    g, g_next = step.diffusion(x, step.t), step.diffusion(x, step.to)
    f = step.drift(x, step.t)
    h = x + 0.75 * dt * f + 1.5 * (g_next * i_10)
    f = f + 2.0 * step.drift(h, step.t + 0.75 * dt)
    return x + dt / 3 * f + g_next * i_1 + g * i_10 - g_next * i_10


def _normals(step: TimeStep, area_sampler: NoiseSampler | None) -> tuple[Form, Form]:
    """Unit normals a and b: I_10 = h^1.5 a / sqrt 3 and I_1 = sqrt h (sqrt 3 a + b) / 2.

    The first stage then needs a alone. From the increment z and the area, a turn by 30 degrees
    makes them.
    """
    if not step.user_noise and area_sampler is None:
        return step.z(0), step.z(1)
    assert isinstance(step, LiveStep)
    like = step.tensor(step.x)
    increment = held(step.tensor(step.z(0)).to(like.dtype))
    if area_sampler is None:
        area = noise.normal(
            like.shape,
            step.key,
            stream=noise.STEPS,
            draw=2 * step.index + 1,
            dtype=like.dtype,
            device=like.device,
        )
    else:
        area = check.model_output("area_sampler", area_sampler(step.t, step.to), like)
    other = held(area.to(like.dtype))
    return (
        held(step.tensor(_ROOT3 / 2 * increment + 0.5 * other)),
        held(step.tensor(0.5 * increment - _ROOT3 / 2 * other)),
    )
