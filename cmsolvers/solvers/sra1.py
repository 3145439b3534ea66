"""The stochastic Runge-Kutta method SRA1: strong order 1.5 for additive noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise, ops
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.launch import NoiseSampler
from cmsolvers.engine.run import Options, sampler
from cmsolvers.engine.time_loop import integrate
from cmsolvers.engine.time_run import Draw, TimeRun, matched
from cmsolvers.processes.sde import SDELike
from cmsolvers.solvers.stochastic_rk import Scheme

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ROOT3 = math.sqrt(3.0)

# In unit normals (a, b): I_(1,0) = |dt|^1.5 a / sqrt 3 and I_(1) = sqrt|dt| (sqrt 3 a + b) / 2, so
# that the first stage needs a alone. The second diffusion of the table, g(t + dt), is the one
# that goes with I_(1).
SRA1 = Scheme(
    "sra1",
    nodes=(0.0, 0.75),
    spreads=(0.0, 1.0),
    drift=((0.75,), (1.0 / 3.0, 2.0 / 3.0)),
    noise=(
        ((0.0, _ROOT3 / 2), (0.0, 0.0)),
        ((1.0 / _ROOT3, 0.5 / _ROOT3), (0.0, 0.5)),
    ),
)


class _Sra1:
    """The step: two launches, the first of which also leaves x with its share of a."""

    name, nodes, draws = "sra1", (0.0, 0.75, 1.0), 2

    def __init__(self, area_sampler: NoiseSampler | None, seed: Any) -> None:
        self._area_sampler, self._seed = area_sampler, seed
        self._key: noise.Key | None = None

    def step(self, run: TimeRun, x: Tensor) -> Tensor:
        """See `sra1`."""
        a, b = self._normals(run, x)
        (a0, b0, g), (_, _, g_next) = run.terms(x, 0.0), run.terms(x, 1.0)
        factors = ((a0, b0), run.field.terms(run.at(0.75))[:2])
        first, last = SRA1.rows(run.dt, factors, matched((g, g_next), x))
        start = run.evaluate(x, 0.0)
        y, base = run.launch_pair(x, (start,), first[:2], (first[3], a), (last[0], last[3]))
        middle = run.evaluate(y, 0.75)
        return run.launch(base, (start, middle), (1.0, *last[1:3]), (last[4], b))

    def _normals(self, run: TimeRun, x: Tensor) -> tuple[Draw, Draw]:
        if not run.user_noise and self._area_sampler is None:
            return run.draw(0), run.draw(1)
        increment = run.draw(0).tensor(x.dtype).to(x.dtype)
        area = self._area(run, x).to(x.dtype)
        a = ops.weighted_step(increment, (area,), (_ROOT3 / 2, 0.5))
        b = ops.weighted_step(increment, (area,), (0.5, -_ROOT3 / 2))
        return Draw(run, 0, lambda: a), Draw(run, 0, lambda: b)

    def _area(self, run: TimeRun, x: Tensor) -> Tensor:
        if self._area_sampler is not None:
            z = self._area_sampler(run.t, run.t_next)
            return check.model_output("area_sampler", z, x)
        if self._key is None:
            self._key = run.launcher.key or noise.key(self._seed, x.shape[0], device=x.device)
        return noise.normal(
            x.shape,
            self._key,
            stream=noise.STEPS,
            draw=2 * run.i + 1,
            dtype=x.dtype,
            device=x.device,
        )


@described(
    order="strong 1.5 (additive noise), weak 2; 2 for an ODE",
    nfe="2 n",
    noise="fresh",
    space="time",
    source="Rößler (2010), scheme SRA1",
)
@sampler
def sra1(
    sde: SDELike,
    x: Tensor,
    ts: Any,
    *,
    area_sampler: NoiseSampler | None = None,
    **options: Unpack[Options],
) -> Any:
    """Integrate dx = f(x, t) dt + g(t) dw with strong order 1.5, g free of the state.

    H = x + 3/4 f dt + 3/2 g(t') I_10 / h, x' = x + (f + 2 f(H, t + 3/4 dt)) dt / 3 + g(t') I_1 +
    (g(t) - g(t')) I_10 / h, where h = |dt|, I_1 = W(t') - W(t) and I_10 is the integral of
    W - W(t) over the step. Weak order 2; order 2 for an ODE. Two evaluations of the drift a step:
    two fused launches, with all the noise made inside them. The reverse SDE of a diffusion model is
    such an equation.

    Args:
        sde: as in `euler_maruyama`, without a state-dependent diffusion. The diffusion is read at
            every one of `ts`, the last too.
        x: [B, ...] at ts[0], in the coordinates of the SDE. Never written to.
        ts: strictly ascending (forward) or descending (reverse), at least two.
        area_sampler: `area_sampler(t, t_next) -> Tensor`, unit normal in the shape of x, the
            space-time Levy area of the step over its standard deviation sqrt(h / 12):
            I_10 = h^1.5 (z + area / sqrt 3) / 2 with the z of `noise_sampler`. Of the two, what is
            not given is built in: the law is right then, but the path is not kept when the steps
            are refined, because increments do not hold the area.
        **options: seed (step i uses the draws 2 i and 2 i + 1 of stream 1), noise_sampler (asked
            once a step, for (t, t_next)), extra_args, callback, progress, return_info, check_nan
            and trajectory, as in `euler_maruyama`.

    Returns:
        As `euler_maruyama`.

    Raises:
        TypeError: as `euler_maruyama`; an area_sampler of the wrong kind.
        ValueError: as `euler_maruyama`; a state-dependent diffusion.

    Source: Rößler, "Runge-Kutta methods for the strong approximation of solutions of stochastic
    differential equations" (2010), scheme SRA1; Kloeden & Platen (1992), section 10.4, for the
    joint law of I_1 and I_10.
    """
    check.optional_function("area_sampler", area_sampler)
    if getattr(sde, "state_dependent", False):
        raise ValueError("sra1 needs additive noise; got an sde with state_dependent = True")
    return integrate(_Sra1(area_sampler, options.get("seed")), sde, x, ts, **options)
