"""Embedded Runge-Kutta pairs on the probability-flow ODE, each sample with its own steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.adaptive.attempts import Run
from cmsolvers.engine.adaptive.control import PIControl
from cmsolvers.engine.adaptive.errors import AdaptiveInfo
from cmsolvers.engine.adaptive.method import Mode, Settings, fraction, read_settings
from cmsolvers.engine.adaptive.runge_kutta import RungeKutta
from cmsolvers.engine.adaptive.sample_noise import SampleNoise
from cmsolvers.engine.adaptive.sigma_space import Levels, read_levels, run_levels
from cmsolvers.engine.adaptive.tableaux import TABLEAUX
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.launch import Recorder

_MIN_FACTOR, _MAX_FACTOR = 0.2, 10.0
_SAFETY, _PCOEFF, _ICOEFF = 0.9, 0.2, 0.65


@described(
    order="2 to 5 (method)",
    nfe="adaptive",
    noise="none",
    adaptive=True,
    source="Dormand & Prince (1980), Tsitouras (2011), Bogacki & Shampine (1989); Hairer, Norsett "
    "& Wanner (1993), section II.4",
)
def rk_pf_ode(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    method: Literal["dopri54", "tsit54", "bosh32", "heun21"] = "dopri54",
    coordinate: Literal["log_sigma", "sigma"] = "log_sigma",
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_steps: int = 4096,
    safety: float = _SAFETY,
    pcoeff: float = _PCOEFF,
    icoeff: float = _ICOEFF,
    first_step: float | None = None,
    seed: Any = None,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
    mode: Mode = "compact",
    check_every: int | None = 16,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    progress: bool = False,
    return_info: bool = False,
    check_nan: bool = True,
    trajectory: Any = None,
) -> Any:
    """Solve dx/dsigma = (x - D)/sigma to a tolerance, with a step size for each sample.

    Orders 2 (heun21), 3 (bosh32) and 5 (dopri54, tsit54), with local extrapolation. A try costs 2,
    3, 6 and 6 evaluations (heun21: 1 after a rejection); every run two more at its start, one where
    `first_step` is given. Steps, error norm (root mean square over a sample) and acceptance are a
    sample's own: with a denoiser that treats samples apart, a sample's result does not depend on
    its companions, to the bit.

    Args:
        denoiser: as in `euler_pf_ode`; outputs are kept for a whole step, so it must not hand out
            the same tensor twice. Half precision states are computed in float32.
        x: as in `euler_pf_ode`.
        sigmas: as in `euler_pf_ode`; only the ends are used, unless `trajectory` asks for levels in
            between. Before a final 0 comes a positive level where the ODE ends; one evaluation of
            the denoiser there gives the result.
        method: the pair.
        coordinate: what steps are measured in. The pairs of order 5 gain by "log_sigma", the others
            by "sigma".
        rtol: relative tolerance of a step, not negative.
        atol: absolute tolerance of a step, positive.
        max_steps: most tries of a sample.
        safety: factor on a new step size, in (0, 1).
        pcoeff: proportional part of the step size control, not negative.
        icoeff: integral part, positive. The exponents of the error and of the last one are
            (pcoeff + icoeff)/k and pcoeff/k with k one more than the lower order; the defaults are
            those of DOPRI5. pcoeff = 0, icoeff = 1 is the elementary control.
        first_step: first step size in the coordinate, positive; None finds one.
        seed: checked and not used, as in every sampler without noise.
        noise_sampler: likewise; never called.
        mode: "compact": samples that have ended leave the batch, and every try waits for the
            device once. "masked": all stay, with steps of zero weight, and nothing waits but the
            look that `check_every` tells of; made for CUDA graphs and compilers of fixed shapes.
        check_every: in masked mode, after how many tries to look whether all have ended; None runs
            max_steps tries and looks after them (not at all while a graph is captured:
            `info.finished` tells).
        extra_args: further keyword arguments for the denoiser. In compact mode tensors among them
            (in dicts, lists and tuples too) whose first size is B are rows of samples and follow
            their samples.
        callback: called before each try with dict(i, samples, x, sigma, sigma_hat, sigma_next,
            denoised): i counts tries, `samples` [b] are places in the batch, levels float64 [b].
        progress: show a bar of tries, with the mean level and the calls.
        return_info: return (x, AdaptiveInfo).
        check_nan: raise where an error estimate is NaN; if False such a step is rejected and tried
            smaller.
        trajectory: as in `euler_pf_ode`; steps are made to land on the levels asked for.

    Returns:
        x at sigmas[-1], in the dtype, layout and device of x; with `return_info` or `trajectory`
        also an `AdaptiveInfo`. Differentiable in x and the model at the steps that were taken.

    Raises:
        SolverError: a sample's step size underflowed, its error was NaN, or max_steps were not
            enough; it carries the states reached and names sample and level.
        TypeError, ValueError: as in `euler_pf_ode`, and options out of range.

    Source: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I" (1993), section
    II.4, with the pairs of Dormand & Prince (1980), Tsitouras (2011), Bogacki & Shampine (1989).
    """
    check.state("x", x)
    check.function("denoiser", denoiser)
    SampleNoise(seed, x, noise_sampler, wanted=False)
    return _run(
        denoiser,
        x,
        read_levels(sigmas, trajectory),
        name="rk_pf_ode",
        method=method,
        coordinate=coordinate,
        rtol=rtol,
        atol=atol,
        safety=safety,
        pcoeff=pcoeff,
        icoeff=icoeff,
        first_step=first_step,
        settings=read_settings(
            max_steps=max_steps,
            mode=mode,
            check_every=check_every,
            extra_args=extra_args,
            callback=callback,
            progress=progress,
            return_info=return_info,
            check_nan=check_nan,
            min_factor=_MIN_FACTOR,
        ),
        return_info=return_info,
    )


def solve(
    denoiser: Any,
    x: Tensor,
    levels: tuple[float, float],
    *,
    name: str,
    method: str = "dopri54",
    coordinate: str = "log_sigma",
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_steps: int = 4096,
    mode: str = "compact",
    check_every: int | None = 16,
    extra_args: dict[str, Any] | None = None,
    progress: bool = False,
) -> tuple[Tensor, AdaptiveInfo]:
    """`rk_pf_ode` for other solvers of the library: upwards too, under a name of theirs.

    Args:
        denoiser: as in `rk_pf_ode`.
        x: as there, checked.
        levels: two positive levels, in any order.
        name: for error texts and progress bars.
        method: as in `rk_pf_ode`, as all that follow.
        coordinate: as there.
        rtol: as there.
        atol: as there.
        max_steps: as there.
        mode: as there.
        check_every: as there.
        extra_args: as there.
        progress: as there.

    Returns:
        (x at levels[1], AdaptiveInfo).

    Raises:
        SolverError, TypeError, ValueError: as `rk_pf_ode`.
    """
    settings = read_settings(
        max_steps=max_steps,
        mode=mode,
        check_every=check_every,
        extra_args=extra_args,
        callback=None,
        progress=progress,
        return_info=True,
        check_nan=True,
        min_factor=_MIN_FACTOR,
    )
    ends = Levels(levels, False, False, Recorder("trajectory", None, levels))
    result: tuple[Tensor, AdaptiveInfo] = _run(
        denoiser,
        x,
        ends,
        name=name,
        method=method,
        coordinate=coordinate,
        rtol=rtol,
        atol=atol,
        safety=_SAFETY,
        pcoeff=_PCOEFF,
        icoeff=_ICOEFF,
        first_step=None,
        settings=settings,
        return_info=True,
    )
    return result


def _run(
    denoiser: Any,
    x: Tensor,
    levels: Levels,
    *,
    name: str,
    method: Any,
    coordinate: Any,
    rtol: Any,
    atol: Any,
    safety: Any,
    pcoeff: Any,
    icoeff: Any,
    first_step: Any,
    settings: Settings,
    return_info: bool,
) -> Any:
    table = TABLEAUX[check.choice("method", method, tuple(TABLEAUX))]
    log = check.choice("coordinate", coordinate, ("log_sigma", "sigma")) == "log_sigma"
    steps = RungeKutta(
        table,
        denoiser,
        x,
        log=log,
        rtol=check.non_negative("rtol", rtol),
        atol=check.positive("atol", atol),
        name=name,
    )
    control = PIControl(
        k=table.embedded_order + 1,
        pcoeff=check.non_negative("pcoeff", pcoeff),
        icoeff=check.positive("icoeff", icoeff),
        safety=fraction("safety", safety),
        min_factor=_MIN_FACTOR,
        max_factor=_MAX_FACTOR,
    )
    size = None if first_step is None else check.positive("first_step", first_step)

    def begin(run: Run) -> Tensor:
        return steps.first_step(run) if size is None else torch.full_like(run.now.t, size)

    return run_levels(
        steps,
        control,
        x,
        levels,
        settings,
        to_t=math.log if log else float,
        begin=begin,
        return_info=return_info,
    )
