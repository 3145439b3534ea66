"""One step of the improved Euler method for SDEs with additive noise, with Euler-Maruyama in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise as noises
from cmsolvers import ops
from cmsolvers.engine.adaptive.error_norms import scaled_error
from cmsolvers.engine.adaptive.method import Method, Outcome, Trial
from cmsolvers.engine.adaptive.sample_noise import SampleNoise
from cmsolvers.engine.time_fields import checked_diffusion
from cmsolvers.engine.time_run import Weight, elementwise, matched
from cmsolvers.processes.sde import ScoreSDE


class ImprovedEuler(Method):
    """x' = x + h f + g dW, x'' = x + h (f + f') / 2 + (g + g') dW / 2, f' and g' at (x', t + h).

    Args:
        sde: what is integrated.
        like: the user's x.
        rtol: relative tolerance.
        atol: absolute tolerance.
        noise: of the batch; None for an ODE.
        ends: where the run starts and ends.
    """

    name = "adaptive_sde"
    evaluations = 1
    reuses_last = False
    remembers = True

    def __init__(
        self,
        sde: Any,
        like: Tensor,
        *,
        rtol: float,
        atol: float,
        noise: SampleNoise | None,
        ends: tuple[float, float],
    ) -> None:
        self._sde, self._like, self._noise, self._ends = sde, like, noise, ends
        self._rtol, self._atol = rtol, atol
        self._affine = type(sde) is ScoreSDE

    def first(self, x: Tensor, t: Tensor, extra: dict[str, Any]) -> Tensor:
        """The score, or the drift of an SDE that is not one of the library's."""
        x = x.to(self._like.dtype)
        time = t.to(device=x.device, dtype=x.dtype)
        function = self._sde.score if self._affine else self._sde.drift
        name = "score" if self._affine else "drift"
        return check.model_output(name, function(x, time, **extra), x)

    def attempt(self, trial: Trial) -> Outcome:
        """Both steps on the same increment."""
        x, first = trial.x, trial.first.to(trial.x.dtype)
        h, dw = trial.h.to(x.device), self._increment(trial)
        a, b, g = self._terms(trial.t, x)
        kick, w = _kick([g], dw, x)
        euler = ops.weighted_step(x, (first, *kick), (a * h + 1.0, b * h, *w))
        second = self.first(euler, trial.t_next, trial.extra).to(x.dtype)
        a2, b2, g2 = self._terms(trial.t_next, x)
        kick, w = _kick([g, g2], dw, x)
        half = 0.5 * h
        improved = ops.weighted_step(
            x,
            (first, euler, second, *kick),
            (a * half + 1.0, b * half, a2 * half, b2 * half, *w),
        )
        assert trial.previous is not None
        error = scaled_error(
            euler - improved, euler, trial.previous, rtol=self._rtol, atol=self._atol, larger=True
        )
        return Outcome(improved, error, previous=euler.detach())

    def shown(self, trial: Trial) -> dict[str, Any]:
        """x, t, t_next and the output of drift or score."""
        return {"x": trial.x, "t": trial.t, "t_next": trial.t_next, "output": trial.first}

    def _increment(self, trial: Trial) -> Tensor | None:
        """W(t_next) - W(t) of every sample, on its own path: a rejected try is bridged."""
        x, (start, end) = trial.x, self._ends
        if self._noise is None:
            return None
        if not self._noise.built_in:
            z = self._noise.sampled(x, trial.ids, trial.t, trial.t_next, end)
            return ops.weighted_step(z, (), (trial.h.abs().sqrt().to(x.device),))
        path = noises.BrownianPath(
            self._noise.key(trial.ids),
            min(start, end),
            max(start, end),
            x.shape,
            dtype=x.dtype,
            device=x.device,
        )
        return path(trial.t.to(x.device), trial.t_next.to(x.device))

    def _terms(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Weight]:
        """(a, b, g): drift a x + b output, and the diffusion; a and b float64 [b]."""
        there = t.to(x.device)
        one = torch.ones_like(there)
        if self._affine:
            a, b, g = (one * v for v in self._sde.terms(there))
            return a, b, g
        g = checked_diffusion(self._sde.diffusion(there.to(self._like.dtype)), x)
        return one * 0.0, one, g


def _kick(
    spreads: Sequence[Weight], dw: Tensor | None, x: Tensor
) -> tuple[list[Tensor], list[Weight]]:
    """The mean of the diffusions times dw, as inputs of a step and their weights."""
    if dw is None:
        return [], []
    first, *others = matched(spreads, x)
    g = 0.5 * (first + others[0]) if others else first
    return ([(g * dw).to(x.dtype)], [1.0]) if elementwise(g) else ([dw], [g])
