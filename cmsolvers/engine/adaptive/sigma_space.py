"""What the adaptive solvers of a denoiser on noise levels have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.composed import all_samples
from cmsolvers.engine.adaptive.attempts import Run
from cmsolvers.engine.adaptive.control import Control
from cmsolvers.engine.adaptive.method import Method, Settings, Trial, landings, working
from cmsolvers.engine.launch import Recorder


class SigmaMethod(Method):
    """A method that calls a denoiser.

    Args:
        denoiser: `D(x, sigma, **extra_args)`.
        like: the user's x: the denoiser is called in its dtype.
    """

    def __init__(self, denoiser: Any, like: Tensor) -> None:
        self.model, self._dtype = denoiser, like.dtype

    def denoised(self, y: Tensor, sigma: Tensor, extra: dict[str, Any]) -> Tensor:
        """D(y, sigma), sigma of shape [b] on any device."""
        y = y.to(self._dtype)
        level = sigma.to(device=y.device, dtype=self._dtype)
        return check.model_output("denoiser", self.model(y, level, **extra), y)

    def first(self, x: Tensor, t: Tensor, extra: dict[str, Any]) -> Tensor:
        """D at x."""
        return self.denoised(x, self.level(t), extra)

    def shown(self, trial: Trial) -> dict[str, Any]:
        """x, sigma, sigma_hat (the same), sigma_next and denoised."""
        sigma = self.level(trial.t)
        return {
            "x": trial.x,
            "sigma": sigma,
            "sigma_hat": sigma,
            "sigma_next": self.level(trial.t_next),
            "denoised": trial.first,
        }


class Levels(NamedTuple):
    """Checked levels of a run.

    Attributes:
        stops: where steps land, the start first; all positive.
        denoise: whether a 0 follows, reached by one evaluation of the denoiser.
        keep: whether the states at the stops are wanted.
        recorder: of the states wanted, for those at the stops (and 0).
    """

    stops: tuple[float, ...]
    denoise: bool
    keep: bool
    recorder: Recorder


def read_levels(sigmas: Any, trajectory: Any) -> Levels:
    """The ends of `sigmas`, and what a trajectory asks for in between."""
    levels = check.sigmas("sigmas", sigmas)
    denoise = levels[-1] == 0
    if denoise and len(levels) < 3:
        raise ValueError(
            f"sigmas must have a positive level between the first and a final 0; got {len(levels)} "
            "levels"
        )
    visited, recorder = landings(levels, trajectory, last=2 if denoise else 1)
    return Levels(visited[:-1] if denoise else visited, denoise, recorder.wanted, recorder)


def run_levels(
    method: SigmaMethod,
    control: Control,
    x: Tensor,
    levels: Levels,
    settings: Settings,
    *,
    to_t: Callable[[float], float],
    begin: Callable[[Run], Tensor],
    return_info: bool,
) -> Any:
    """Run from the first level to the last; `begin` gives the first step sizes, float64 [B]."""
    times = tuple(to_t(s) for s in levels.stops)
    if settings.mode == "compact":
        settings = replace(settings, extra={**all_samples(method.model, x), **settings.extra})
    run = Run(method, control, working(x), x, times, settings, keep_states=levels.keep)
    if x.shape[0]:
        run.evaluate_first()
        run.now.h = begin(run)
    last = run.go()
    calls = 0
    if levels.denoise and x.shape[0]:
        state, calls = run.whole("x"), 1
        sigma = torch.full((x.shape[0],), levels.stops[-1], dtype=torch.float64, device=x.device)
        last = run.result(method.denoised(state, sigma, settings.extra))
    if not (return_info or levels.keep):
        return last
    return last, run.info(calls, *_trajectory(x, run.states, last, levels))


def _trajectory(x: Tensor, states: Tensor | None, last: Tensor, levels: Levels) -> Sequence[Any]:
    if states is not None:
        for state in (x, *states.to(x.dtype), *([last] if levels.denoise else [])):
            levels.recorder.add(state)
    return levels.recorder.result()
