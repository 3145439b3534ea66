"""One step of an embedded Runge-Kutta pair on the probability-flow ODE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmsolvers.engine.adaptive.attempts import Run
from cmsolvers.engine.adaptive.error_norms import scaled_error
from cmsolvers.engine.adaptive.method import Outcome, Trial
from cmsolvers.engine.adaptive.rows import Rows
from cmsolvers.engine.adaptive.sigma_space import SigmaMethod
from cmsolvers.engine.adaptive.tableaux import Tableau
from cmsolvers.ops.norms import root_mean_square


class RungeKutta(SigmaMethod):
    """Steps of a pair on dx/dt with t = sigma or t = ln sigma.

    Args:
        tableau: the pair.
        denoiser: D.
        like: the user's x.
        log: whether t is ln sigma: the slope is then x - D, else (x - D) / sigma.
        rtol: relative tolerance.
        atol: absolute tolerance.
        name: of the solver.
    """

    def __init__(
        self,
        tableau: Tableau,
        denoiser: Any,
        like: Tensor,
        *,
        log: bool,
        rtol: float,
        atol: float,
        name: str = "rk_pf_ode",
    ) -> None:
        super().__init__(denoiser, like)
        self.name, self.tableau, self._log = name, tableau, log
        self._rtol, self._atol = rtol, atol
        self.reuses_last = tableau.reuses_last
        self.evaluations = len(tableau.a)

    def level(self, t: Tensor) -> Tensor:
        """Sigma."""
        return torch.exp(t) if self._log else t

    def attempt(self, trial: Trial) -> Outcome:
        """Stage by stage; the error is h sum_j (b_j - b_low_j) f_j."""
        x, h, table = trial.x, trial.h, self.tableau
        rows = Rows(x.shape[0], len(table.b), h.device, x.device)
        outputs, y, row = [trial.first], x, None
        gains: list[Tensor] = []
        for k, c in enumerate(table.c):
            sigma = self.level(trial.t_next if c == 1 else trial.t + h * c)
            if k:
                outputs.append(self.denoised(y, sigma, trial.extra))
            rows.evaluated(row, sigma)
            gains.append(h * sigma if self._log else h)
            if k < len(table.a):
                row = rows.state(_times(table.a[k], gains))
                y = rows.apply(row, x, outputs)
        if not table.reuses_last:
            y = rows.apply(rows.state(_times(table.b, gains)), x, outputs)
        estimate = rows.apply(rows.difference(_times(table.error, gains)), x, outputs)
        error = scaled_error(estimate, x, y, rtol=self._rtol, atol=self._atol)
        return Outcome(y, error, outputs[-1] if table.reuses_last else None)

    def first_step(self, run: Run) -> Tensor:
        """A step size that one Euler step of a hundredth of x / f finds, float64 [B].

        Source: Hairer, Norsett & Wanner (1993), section II.4, "starting step size".
        """
        now, extra = run.now, run.settings.extra
        x, d = now.x.detach(), now.first
        assert d is not None
        scale = x.abs().mul_(self._rtol).add_(self._atol)
        slope = self._slope(x, d, now.t)
        size = root_mean_square(x / scale).to(now.t.device)
        speed = root_mean_square(slope / scale).to(now.t.device)
        h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
        h = torch.minimum(h, (now.t - run.times[1]).abs())
        signed = h if run.times[1] > run.times[0] else -h
        t = now.t + signed
        y = x + slope * signed.to(x).reshape(-1, *[1] * (x.dim() - 1))
        bend = self._slope(y, self.denoised(y, self.level(t), extra), t) - slope
        run.count_call(torch.ones_like(now.fresh))
        curvature = root_mean_square(bend / scale).to(h.device) / h
        largest = torch.maximum(speed, curvature)
        power = torch.exp(torch.log(0.01 / largest) * (1 / self.tableau.order))
        better = torch.where(largest <= 1e-15, (h * 1e-3).clamp_min(1e-6), power)
        better = torch.minimum(h * 100, better)
        # A NaN here is found, and told, by the first step.
        return torch.where(better.isfinite(), better, h)

    def _slope(self, x: Tensor, d: Tensor, t: Tensor) -> Tensor:
        difference = x - d.detach().to(x.dtype)
        if self._log:
            return difference
        return difference / t.to(x).reshape(-1, *[1] * (x.dim() - 1))


def _times(weights: tuple[float, ...], gains: list[Tensor]) -> list[Tensor | float]:
    return [g * w if w else 0.0 for w, g in zip(weights, gains, strict=True)]
