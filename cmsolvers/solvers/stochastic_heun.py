"""Heun's method for SDEs in the sense of Stratonovich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers.engine.catalogue import described
from cmsolvers.engine.run import Options, sampler
from cmsolvers.engine.time_loop import integrate
from cmsolvers.processes.sde import SDELike
from cmsolvers.solvers.stochastic_rk import Scheme

if TYPE_CHECKING:
    from typing_extensions import Unpack

STOCHASTIC_HEUN = Scheme(
    "stochastic_heun",
    nodes=(0.0, 1.0),
    spreads=(0.0, 1.0),
    drift=((1.0,), (0.5, 0.5)),
    noise=(((1.0, 0.0),), ((0.5, 0.5),)),
)


@described(
    order="strong 1 (commutative noise), weak 1; 2 for an ODE",
    nfe="2 n",
    noise="fresh",
    space="time",
    source="Rümelin (1982); Kloeden and Platen (1992), section 11.1 and 15.5",
)
@sampler
def stochastic_heun(sde: SDELike, x: Tensor, ts: Any, **options: Unpack[Options]) -> Any:
    """Integrate dx = f(x, t) dt + g(x, t) o dw, in the sense of Stratonovich.

    y = x + f dt + g dW, then x' = x + (f + f(y, t')) dt / 2 + (g + g(y, t')) dW / 2 with the same
    dW = sqrt|dt| z. Strong order 1 where the noise commutes: g without the state (then Ito and
    Stratonovich are the same equation), or each element of g a function of its own element of x;
    else 1/2. Weak order 1, and 2 for linear equations with additive noise; order 2 for an ODE. Two
    evaluations of the drift and of the diffusion a step.

    An Ito equation with diffusion g(x) needs the drift f - g g_x / 2 here.

    Args:
        sde: as in `euler_maruyama`, read in the sense of Stratonovich.
        x: [B, ...] at ts[0], in the coordinates of the SDE. Never written to.
        ts: strictly ascending (forward) or descending (reverse), at least two. Drift and diffusion
            are evaluated at every one of them, the last too.
        **options: seed, noise_sampler (asked once a step, for (t, t_next)), extra_args, callback,
            progress, return_info, check_nan and trajectory, as in `euler_maruyama`.

    Returns:
        As `euler_maruyama`.

    Raises:
        TypeError, ValueError: as `euler_maruyama`.

    Source: Rümelin, "Numerical treatment of stochastic differential equations" (1982); Kloeden &
    Platen, "Numerical Solution of Stochastic Differential Equations" (1992).
    """
    return integrate(STOCHASTIC_HEUN, sde, x, ts, **options)
