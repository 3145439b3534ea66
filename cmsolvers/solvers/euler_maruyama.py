"""The Euler-Maruyama method for any SDE or ODE, forward or reverse in time."""

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

EULER_MARUYAMA = Scheme("euler_maruyama", (0.0,), (0.0,), drift=((1.0,),), noise=(((1.0,),),))


@described(
    order="strong 1/2 (1 for additive noise), weak 1; 1 for an ODE",
    nfe="n",
    noise="fresh",
    space="time",
    source="Maruyama (1955); Kloeden and Platen (1992), section 10.2",
)
@sampler
def euler_maruyama(sde: SDELike, x: Tensor, ts: Any, **options: Unpack[Options]) -> Any:
    """Integrate dx = drift(x, t) dt + diffusion(t) dw: x' = x + f dt + g sqrt|dt| z.

    Strong order 1/2, and 1 where the diffusion does not depend on the state; weak order 1; order 1
    for an ODE. One evaluation of the drift a step.

    Args:
        sde: an `SDE`, a process (its forward SDE), `process.reverse(score)`,
            `process.probability_flow(score)`, or any object with `drift(x, t)` and `diffusion(t)`,
            which get t of shape [B] in the dtype of x. The diffusion is a number or a tensor of
            shape [] or [B], or it broadcasts against x and multiplies the noise elementwise. For
            the library's own only the score is called, and all the rest is folded into the step.
        x: [B, ...] at ts[0], in the coordinates of the SDE. Never written to.
        ts: strictly ascending (forward) or descending (reverse), at least two.
        seed: as in `euler_pf_ode`; step i uses draw i of stream 1.
        noise_sampler: `noise_sampler(t, t_next) -> Tensor`, unit normal in the shape of x. With
            `noise.BrownianPath(...).unit` the path is kept when the steps are refined.
        extra_args: further keyword arguments for the drift or the score.
        callback: called once a step, after its first evaluation, with dict(i, x, t, t_next,
            output), output what the drift or the score returned (None for a forward process). What
            it raises ends the run.
        progress: show a bar with the time and the NFE.
        return_info: return (x, Info); the NFE counts drifts or scores.
        check_nan: as in `euler_pf_ode`.
        trajectory: True for the state at every time, or the times (some of `ts`) whose states are
            wanted. They are copied to `info.trajectory`, [K, B, ...], with their times in
            `info.levels`, and (x, info) is returned.

    Returns:
        x at ts[-1], in the dtype, layout and device of x; with `return_info` or `trajectory` also
        an `Info`.

    Raises:
        TypeError: an argument of the wrong kind, a drift or diffusion of the wrong kind or dtype.
        ValueError: times that are not finite and monotone, wrong shapes or devices.

    Source: Maruyama, "Continuous Markov processes and stochastic equations" (1955); Kloeden &
    Platen, "Numerical Solution of Stochastic Differential Equations" (1992), section 10.2.
    """
    return integrate(EULER_MARUYAMA, sde, x, ts, **options)
