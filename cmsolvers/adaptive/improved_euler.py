"""One step of the improved Euler method for SDEs with additive noise, with Euler-Maruyama in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmsolvers import _checks as check
from cmsolvers import noise as noises
from cmsolvers import ops
from cmsolvers.adaptive.method import Method, Outcome, Trial
from cmsolvers.adaptive.norms import scaled_error
from cmsolvers.adaptive.randomness import SampleNoise
from cmsolvers.sde import ScoreSDE


class ImprovedEuler(Method):
    """x' = x + h f + g dW, x'' = x + h (f + f') / 2 + (g + g') dW / 2, f' and g' at (x', t + h).

    Args:
        sde: what is integrated.
        like: the user's x.
        rtol: relative tolerance.
        atol: absolute tolerance.
        noise: of the batch.
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
        noise: SampleNoise,
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
        h = trial.h.to(x.device)
        dw = self._increment(trial)
        a, b, g, wide = self._terms(trial.t, x)
        euler = ops.weighted_step(x, (first, _spread(wide, dw)), (a * h + 1.0, b * h, g))
        second = self.first(euler, trial.t_next, trial.extra).to(x.dtype)
        a2, b2, g2, wide2 = self._terms(trial.t_next, x)
        half = 0.5 * h
        if wide is None and wide2 is None:
            parts, weights = [dw], [0.5 * (g + g2)]
        else:
            parts, weights = [_spread(wide, dw), _spread(wide2, dw)], [0.5 * g, 0.5 * g2]
        improved = ops.weighted_step(
            x,
            (first, euler, second, parts[0]),
            (a * half + 1.0, b * half, a2 * half, b2 * half, weights[0]),
        )
        if len(parts) > 1:
            improved = ops.weighted_step(improved, (parts[1],), (1.0, weights[1]))
        assert trial.previous is not None
        error = scaled_error(
            euler - improved, euler, trial.previous, rtol=self._rtol, atol=self._atol, larger=True
        )
        return Outcome(improved, error, previous=euler.detach())

    def shown(self, trial: Trial) -> dict[str, Any]:
        """x, t, t_next and the output of drift or score."""
        return {"x": trial.x, "t": trial.t, "t_next": trial.t_next, "output": trial.first}

    def _increment(self, trial: Trial) -> Tensor:
        """W(t_next) - W(t) of every sample, on its own path: a rejected try is bridged."""
        x, (start, end) = trial.x, self._ends
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

    def _terms(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(a, b, g, G): drift a x + b output, noise g G dw; float64 [b], and G like x or None."""
        there = t.to(x.device)
        one = torch.ones_like(there)
        if self._affine:
            a, b, g = (one * v for v in self._sde.terms(there))
            return a, b, g, None
        g = self._sde.diffusion(there.to(self._like.dtype))
        if not isinstance(g, Tensor):
            return one * 0.0, one, one * check.finite("diffusion", g), None
        shape = tuple(g.shape)
        if shape in ((), (1,), (x.shape[0],), (x.shape[0], *[1] * (x.dim() - 1))):
            return one * 0.0, one, one * g.to(there).reshape(-1), None
        try:
            return one * 0.0, one, one, g.to(x).expand(x.shape)
        except RuntimeError:
            raise ValueError(
                f"diffusion must return a number, shape [B] = [{x.shape[0]}] or one that "
                f"broadcasts against x, {list(x.shape)}; it returned {list(shape)}"
            ) from None


def _spread(wide: Tensor | None, dw: Tensor) -> Tensor:
    return dw if wide is None else wide * dw
