"""The Euler-Maruyama method for any SDE or ODE, forward or reverse in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor

from cmsolvers import _checks as check
from cmsolvers import noise
from cmsolvers._launch import BadOutputs, Launcher, NoiseSampler, bar, derivative, per_level
from cmsolvers.sample import Info
from cmsolvers.sde import Process, ScoreSDE, SDELike


def euler_maruyama(
    sde: SDELike,
    x: Tensor,
    ts: Any,
    *,
    seed: Any = None,
    noise_sampler: NoiseSampler | None = None,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    progress: bool = False,
    return_info: bool = False,
    check_nan: bool = False,
) -> Any:
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
        noise_sampler: `noise_sampler(t, t_next) -> Tensor`, unit normal in the shape of x.
        extra_args: further keyword arguments for the drift or the score.
        callback: called once a step with dict(i, x, t, t_next, output), output what the drift or
            the score returned (None for a forward process). What it raises ends the run.
        progress: show a bar with the time and the NFE.
        return_info: return (x, Info); the NFE counts drifts or scores.
        check_nan: as in `euler_pf_ode`.

    Returns:
        x at ts[-1], in the dtype, layout and device of x; with `return_info` also an `Info`.

    Raises:
        TypeError: an argument of the wrong kind, a drift or diffusion of the wrong kind or dtype.
        ValueError: times that are not finite and monotone, wrong shapes or devices.

    Source: Maruyama, "Continuous Markov processes and stochastic equations" (1955); Kloeden &
    Platen, "Numerical Solution of Stochastic Differential Equations" (1992), section 10.2.
    """
    check.state("x", x)
    for name in ("drift", "diffusion"):
        if not callable(getattr(sde, name, None)):
            raise TypeError(
                f"sde must have drift(x, t) and diffusion(t); {name} is missing in "
                f"{check.describe(sde)}"
            )
    times = check.times("ts", ts)
    check.optional_function("noise_sampler", noise_sampler)
    check.optional_function("callback", callback)
    extra = check.options("extra_args", extra_args)
    check.flags(progress=progress, return_info=return_info, check_nan=check_nan)
    launcher = Launcher(
        x,
        seed=seed,
        noisy=not (isinstance(sde, ScoreSDE) and not sde.stochastic),
        noise_sampler=noise_sampler,
        reuse=callback is None,
        second_dtype=x.dtype,
    )
    rows = per_level(times[:-1], x, x.dtype)
    bad = BadOutputs(x) if check_nan else None
    nfe, kind = 0, _kind(sde)
    with bar(progress, "euler_maruyama", len(times) - 1) as progress_bar:
        for i, (t, t_next) in enumerate(pairwise(times)):
            step = kind(sde, x, t, t_next - t, lambda i=i: rows(i), extra)
            output, inputs, row, spread = step
            if output is not None:
                nfe += 1
                launcher.observe(output)
                if bad is not None:
                    bad.add(i, output)
            if callback is not None:
                callback({"i": i, "x": x, "t": t, "t_next": t_next, "output": output})
            if isinstance(spread, Tensor) and spread.ndim > 1:
                launcher.observe(spread)
                z = launcher.unit(x, t, t_next)
                if z is None:
                    z = noise.normal(
                        x.shape,
                        launcher.key,
                        stream=noise.STEPS,
                        draw=i,
                        dtype=x.dtype,
                        device=x.device,
                    )
                inputs = [m.to(x.dtype) for m in (*inputs, spread * z)]
                row, spread = (*row, 1.0), 0.0
            x = launcher.step(x, inputs, row, w_z=spread, span=(t, t_next), draw=i)
            progress_bar.advance("t", t_next, nfe)
    found = None if bad is None else bad.first()
    if found is not None:
        raise ValueError(
            f"sde must give finite values; got NaN or infinity at step {found[0]}, "
            f"t {times[found[0]]:g}, sample {found[1]}"
        )
    return (x, Info(nfe, len(times) - 1)) if return_info else x


def _kind(sde: Any) -> Callable[..., tuple[Tensor | None, Any, Any, Any]]:
    """How a step of this SDE is made: (model output, inputs, weights of x and inputs, w_z)."""
    if type(sde) is ScoreSDE:
        return _score_step
    # A process with a drift of its own means that to be called.
    if isinstance(sde, Process) and type(sde).drift is Process.drift:
        return _process_step
    return _general_step


def _score_step(sde: ScoreSDE, x: Tensor, t: float, dt: float, at: Any, extra: Any) -> Any:
    """Drift a x + b score: only the score is read."""
    a, b, g = sde.terms(t)
    output = check.model_output("score", sde.score(x, at(), **extra), x)
    return output, (output,), (1.0 + a * dt, b * dt), g * math.sqrt(abs(dt))


def _process_step(sde: Process, x: Tensor, t: float, dt: float, at: Any, extra: Any) -> Any:
    """Drift a x: nothing but the state is read."""
    return None, (), (1.0 + sde.drift_factor(t) * dt,), sde.diffusion(t) * math.sqrt(abs(dt))


def _general_step(sde: Any, x: Tensor, t: float, dt: float, at: Any, extra: Any) -> Any:
    """A user's drift and diffusion, both of them tensors perhaps."""
    time = at()
    output = check.model_output("drift", sde.drift(x, time, **extra), x)
    dependent = getattr(sde, "state_dependent", False)
    g = _diffusion(sde.diffusion(x, time) if dependent else sde.diffusion(time), x)
    return output, (output,), (1.0, dt), g * math.sqrt(abs(dt))


def _diffusion(g: Any, x: Tensor) -> float | Tensor:
    """A float, a float64 tensor [B], or one of the shape of x (if it carries derivatives, too)."""
    if not isinstance(g, Tensor) or (g.ndim == 0 and g.device.type == "cpu" and not derivative(g)):
        return check.finite("diffusion", g)
    if not g.dtype.is_floating_point:
        raise TypeError(f"diffusion must return a floating tensor; it returned {g.dtype}")
    if g.device != x.device:
        raise ValueError(
            f"diffusion must return a tensor on the device of x, {x.device}; it returned {g.device}"
        )
    batch, shape = x.shape[0], list(g.shape)
    column = [batch] + [1] * (x.ndim - 1)
    if shape in ([], [batch], column):
        if not derivative(g):
            return g.double().reshape(-1).expand(batch)
        return g.reshape(column if shape else []).expand(x.shape)
    padded = [1] * (x.ndim - g.ndim) + shape
    fits = g.ndim > 1 and all(a in (1, b) for a, b in zip(padded, x.shape, strict=False))
    if not fits or g.ndim > x.ndim:
        raise ValueError(
            f"diffusion must return a number, shape [B] = [{batch}] or one that broadcasts against "
            f"x, {list(x.shape)}; it returned {shape}"
        )
    return g.expand(x.shape)
