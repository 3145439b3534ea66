"""The one loop that runs every t-space solver: a method makes the steps, the loop all the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.launch import Launcher, NoiseSampler, Recorder, bar
from cmsolvers.engine.run import Info
from cmsolvers.engine.time_fields import field_of
from cmsolvers.engine.time_run import Method, TimeRun


def integrate(
    method: Method,
    sde: Any,
    x: Tensor,
    ts: Any,
    *,
    noisy: bool | None = None,
    seed: Any = None,
    noise_sampler: NoiseSampler | None = None,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    progress: bool = False,
    return_info: bool = False,
    check_nan: bool = False,
    trajectory: Any = None,
    **unknown: Any,
) -> Any:
    """Run a method; the arguments are told at `euler_maruyama`.

    `noisy` says whether built-in noise may be needed; None leaves that to the SDE.
    """
    if unknown:
        name = next(iter(unknown))
        raise TypeError(f"{method.name}() got an unexpected keyword argument {name!r}")
    check.state("x", x)
    field = field_of(sde, check.options("extra_args", extra_args))
    times = check.times("ts", ts)
    check.optional_function("noise_sampler", noise_sampler)
    check.optional_function("callback", callback)
    check.flags(progress=progress, return_info=return_info, check_nan=check_nan)
    recorder = Recorder("trajectory", trajectory, times)
    launcher = Launcher(
        x,
        seed=seed,
        noisy=field.noisy if noisy is None else noisy,
        noise_sampler=noise_sampler,
        reuse=callback is None,
        second_dtype=x.dtype,
    )
    run = TimeRun(
        method,
        field,
        x,
        times,
        launcher,
        user_noise=noise_sampler is not None,
        callback=callback,
        check_nan=check_nan,
    )
    recorder.add(x)
    with bar(progress, method.name, len(times) - 1) as progress_bar:
        for i in range(len(times) - 1):
            run.begin(i)
            x = method.step(run, x)
            recorder.add(x)
            progress_bar.advance("t", run.t_next, run.nfe)
    run.raise_bad()
    if not (return_info or recorder.wanted):
        return x
    return x, Info(run.nfe, len(times) - 1, *recorder.result())
