"""Euler-Maruyama inside improved Euler for SDEs with additive noise, each sample with its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.adaptive.attempts import Run
from cmsolvers.engine.adaptive.control import PIControl
from cmsolvers.engine.adaptive.improved_euler import ImprovedEuler
from cmsolvers.engine.adaptive.method import Mode, fraction, landings, read_settings, working
from cmsolvers.engine.adaptive.sample_noise import SampleNoise
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.time_fields import check_sde
from cmsolvers.processes.sde import ScoreSDE, SDELike

_MIN_FACTOR, _MAX_FACTOR = 0.1, 10.0


@described(
    order="1 strong, additive noise",
    nfe="adaptive",
    noise="Brownian",
    space="time",
    adaptive=True,
    source="Jolicoeur-Martineau et al., Gotta Go Fast (2021), algorithm 1",
)
def adaptive_sde(
    sde: SDELike,
    x: Tensor,
    ts: Any,
    *,
    rtol: float = 0.01,
    atol: float = 0.0078,
    first_step: float | None = None,
    safety: float = 0.9,
    exponent: float = 0.9,
    seed: Any = None,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
    max_steps: int = 4096,
    mode: Mode = "compact",
    check_every: int | None = 16,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    progress: bool = False,
    return_info: bool = False,
    check_nan: bool = True,
    trajectory: Any = None,
) -> Any:
    """Integrate dx = drift(x, t) dt + diffusion(t) dw to a tolerance, with steps for each sample.

    The error is the difference of an Euler-Maruyama and an improved Euler step on the same
    increment; the latter is the result (strong order 1 for noise that does not depend on the state,
    which is what diffusion models have). A try costs 2 evaluations, 1 after a rejection. Increments
    come from a Brownian path for each sample, so a step that is tried again smaller is on the same
    path: nothing is drawn anew, and rejection does not bias the noise. Samples do not depend on
    their companions, as in `rk_pf_ode`.

    Args:
        sde: as in `euler_maruyama`, with a diffusion that does not depend on the state; asked for
            the samples under way, so a diffusion of the shape of x must follow the shape of t.
        x: [B, ...] at ts[0], in the coordinates of the SDE. Never written to.
        ts: strictly ascending or descending; only the ends are used, unless `trajectory` asks for
            times in between.
        rtol: relative tolerance of a step, not negative.
        atol: absolute tolerance, positive; the default is for images in [-1, 1].
        first_step: first step size, positive; None is a hundredth of the whole time.
        safety: factor on a new step size, in (0, 1).
        exponent: r of h' = h safety error^-r, positive; 0.5 to 1 in the paper.
        seed: as in `euler_pf_ode`; the path is `noise.BrownianPath(seed, t0, t1, ...)`.
        noise_sampler: `noise_sampler(t, t_next)` with float64 [B] each, unit normal in the shape of
            x; asked once a try, rejected ones too, so it should be a path's increment over
            sqrt|t_next - t|. Samples that have ended have t_next = t.
        max_steps: as in `rk_pf_ode`.
        mode: as there.
        check_every: as there.
        extra_args: further keyword arguments for the drift or the score; see there.
        callback: called before each try with dict(i, samples, x, t, t_next, output).
        progress: as there.
        return_info: return (x, AdaptiveInfo); the NFE counts drifts or scores.
        check_nan: as there.
        trajectory: True or some of `ts`; as in `rk_pf_ode`.

    Returns:
        x at ts[-1], in the dtype, layout and device of x; with `return_info` or `trajectory` also
        an `AdaptiveInfo`.

    Raises:
        SolverError: as in `rk_pf_ode`, with the times reached.
        TypeError, ValueError: as in `euler_maruyama`, options out of range, a diffusion that
            depends on the state.

    Source: Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based Models"
    (2021), algorithm 1; Lamba, "An adaptive timestepping algorithm for stochastic differential
    equations" (2003), for the error of an embedded pair.
    """
    check.state("x", x)
    check_sde(sde)
    if getattr(sde, "state_dependent", False):
        raise ValueError("sde must have a diffusion that does not depend on the state")
    times = check.times("ts", ts)
    stops, recorder = landings(times, trajectory)
    settings = read_settings(
        max_steps=max_steps,
        mode=mode,
        check_every=check_every,
        extra_args=extra_args,
        callback=callback,
        progress=progress,
        return_info=return_info,
        check_nan=check_nan,
        min_factor=_MIN_FACTOR,
    )
    control = PIControl(
        k=1 / check.positive("exponent", exponent),
        pcoeff=0.0,
        icoeff=1.0,
        safety=fraction("safety", safety),
        min_factor=_MIN_FACTOR,
        max_factor=_MAX_FACTOR,
    )
    size = abs(times[-1] - times[0]) / 100
    if first_step is not None:
        size = check.positive("first_step", first_step)
    tolerance = {
        "rtol": check.non_negative("rtol", rtol),
        "atol": check.positive("atol", atol),
    }
    noisy = not (type(sde) is ScoreSDE and not sde.stochastic)
    noise = SampleNoise(seed, x, noise_sampler, wanted=noisy)
    steps = ImprovedEuler(
        sde,
        x,
        **tolerance,
        noise=noise if noisy else None,
        ends=(times[0], times[-1]),
    )
    run = Run(steps, control, working(x), x, stops, settings, keep_states=recorder.wanted)
    run.now.h = torch.full_like(run.now.t, size)
    last = run.go()
    if not (return_info or recorder.wanted):
        return last
    if run.states is not None:
        for state in (x, *run.states.to(x.dtype)):
            recorder.add(state)
    return last, run.info(0, *recorder.result())
