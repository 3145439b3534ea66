"""DPM-Solver-12 and DPM-Solver-23: exponential integrators that choose their own steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.engine.adaptive.control import FilterControl
from cmsolvers.engine.adaptive.error_norms import scaled_error
from cmsolvers.engine.adaptive.exponential_stages import NODES, ExponentialStages
from cmsolvers.engine.adaptive.method import Mode, Outcome, Trial, read_settings
from cmsolvers.engine.adaptive.rows import Rows
from cmsolvers.engine.adaptive.sample_noise import SampleNoise
from cmsolvers.engine.adaptive.sigma_space import SigmaMethod, read_levels, run_levels
from cmsolvers.engine.catalogue import described

_MIN_FACTOR = 0.2


class DPMSolver(SigmaMethod):
    """Steps of DPM-Solver in t = -ln sigma, two orders at once.

    Args:
        order: of the result; the comparison is one lower.
        denoiser: D.
        like: the user's x.
        rtol: relative tolerance.
        atol: absolute tolerance.
        eta: share of the step's variance that is fresh noise.
        s_noise: factor on the noise.
        noise: of the batch; None where eta is 0.
        t_end: where the run ends.
    """

    name = "dpm_adaptive"
    reuses_last = False
    remembers = True

    def __init__(
        self,
        order: int,
        denoiser: Any,
        like: Tensor,
        *,
        rtol: float,
        atol: float,
        eta: float,
        s_noise: float,
        noise: SampleNoise | None,
        t_end: float,
    ) -> None:
        super().__init__(denoiser, like)
        self._nodes = NODES[order]
        self._rtol, self._atol = rtol, atol
        self._eta, self._s_noise, self._noise, self._t_end = eta, s_noise, noise, t_end
        self.evaluations = order - 1

    def level(self, t: Tensor) -> Tensor:
        """Sigma."""
        return torch.exp(-t)

    def attempt(self, trial: Trial) -> Outcome:
        """Both orders over the part of the step that the ODE takes, then the noise."""
        x, sigma, h = trial.x, self.level(trial.t), trial.h
        if self._eta:
            # All but the variance that noise will bring: sigma_down = sigma e^-h.
            h = h - 0.5 * torch.log1p(self._eta**2 * torch.expm1(-2.0 * h))
            h = torch.minimum(h, self._t_end - trial.t)
        stages = ExponentialStages(sigma, h)
        rows = Rows(x.shape[0], len(self._nodes), h.device, x.device)
        outputs, row = [trial.first], None
        rows.evaluated(None, sigma)
        for k in range(1, len(self._nodes)):
            row = rows.state(stages.inner(self._nodes, k))
            level = sigma * torch.exp(-self._nodes[k] * h)
            outputs.append(self.denoised(rows.apply(row, x, outputs), level, trial.extra))
            rows.evaluated(row, level)
        high, low = (
            rows.apply(rows.state(multiples), x, outputs)
            for multiples in stages.results(self._nodes)
        )
        assert trial.previous is not None
        error = scaled_error(
            low - high, low, trial.previous, rtol=self._rtol, atol=self._atol, larger=True
        )
        if self._noise is not None:
            high = self._noised(high, trial, h)
        return Outcome(high, error, previous=low.detach())

    def _noised(self, high: Tensor, trial: Trial, h: Tensor) -> Tensor:
        """Up to the level of t_next: sqrt(sigma_next^2 - sigma_down^2) z."""
        assert self._noise is not None
        more = (h - trial.h).clamp_min(0.0)
        spread = self.level(trial.t_next) * torch.sqrt(-torch.expm1(-2.0 * more)) * self._s_noise
        if self._noise.built_in:
            z = self._noise.steps(high, trial.ids, trial.accepted)
        else:
            levels = self.level(trial.t), self.level(trial.t_next)
            z = self._noise.sampled(high, trial.ids, *levels, math.exp(-self._t_end))
        return ops.weighted_step(high, (z,), (1.0, spread.to(high.device)))


@described(
    order="2 or 3 (order)",
    nfe="adaptive",
    noise="fresh",
    adaptive=True,
    source="Lu et al., DPM-Solver (2022), algorithms 1 and 2 and appendix C",
)
def dpm_adaptive(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    order: Literal[2, 3] = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
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
    """DPM-Solver with steps in -ln sigma that each sample chooses for itself.

    DPM-Solver-12 (order 2) or DPM-Solver-23 (order 3): the result has that order, its difference
    from the order below is the error. A try costs 2 or 3 evaluations, one less after a rejection.
    Like `rk_pf_ode`, a sample's result does not depend on its companions, noise included.

    Args:
        denoiser: as in `rk_pf_ode`.
        x: as in `rk_pf_ode`.
        sigmas: as in `rk_pf_ode`.
        order: 2 or 3.
        rtol: relative tolerance of a step, not negative.
        atol: absolute tolerance of a step, positive.
        h_init: first step size in -ln sigma, positive.
        pcoeff: proportional part of the step size control, not negative.
        icoeff: integral part, not negative; pcoeff + icoeff + dcoeff must be positive.
        dcoeff: derivative part, not negative.
        accept_safety: a step is accepted if the step size would change by at least this factor; in
            (0, 1].
        eta: 0 is the ODE, 1 an ancestral step: the ODE goes down to sigma_down and noise up to
            sigma_next; in [0, 1]. Near the end sigma_down is cut at the last level. An ancestral
            step keeps the law of x for a step size that x has no part in; chosen by x, the law is
            right to the first order in the step only, which the error estimate does not see: for
            statistics use a small tolerance.
        s_noise: factor on the noise.
        seed: as in `euler_pf_ode`. The k-th accepted step of a sample uses draw k of stream 1, also
            in the tries before.
        noise_sampler: `noise_sampler(sigma, sigma_next)` with float64 [B] each, unit normal in the
            shape of x; asked once a try. Samples that have ended have sigma_next = sigma.
        max_steps: as in `rk_pf_ode`, as all that follow.
        mode: as there.
        check_every: as there.
        extra_args: as there.
        callback: as there.
        progress: as there.
        return_info: as there.
        check_nan: as there.
        trajectory: as there.

    Returns:
        As `rk_pf_ode`.

    Raises:
        SolverError, TypeError, ValueError: as `rk_pf_ode`.

    Source: Lu et al., "DPM-Solver" (2022), algorithms 1 and 2 and appendix C; Soderlind & Wang
    (2006) for the step size control; ancestral steps as in Song et al. (2021), "DDIM", eq. 16.
    """
    check.state("x", x)
    check.function("denoiser", denoiser)
    levels = read_levels(sigmas, trajectory)
    if isinstance(order, bool) or order not in NODES:
        raise ValueError(f"order must be 2 or 3; got {order!r}")
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
    names = {"pcoeff": pcoeff, "icoeff": icoeff, "dcoeff": dcoeff}
    parts = {name: check.non_negative(name, value) for name, value in names.items()}
    check.positive("pcoeff + icoeff + dcoeff", sum(parts.values()))
    size, least = check.positive("h_init", h_init), check.real("accept_safety", accept_safety)
    if not 0 < least <= 1:
        raise ValueError(f"accept_safety must lie in (0, 1]; got {least:g}")
    share = check.within("eta", eta, 0.0, 1.0)
    numbers = {
        "rtol": check.non_negative("rtol", rtol),
        "atol": check.positive("atol", atol),
        "s_noise": check.non_negative("s_noise", s_noise),
    }
    noise = SampleNoise(seed, x, noise_sampler, wanted=share > 0)
    steps = DPMSolver(
        order,
        denoiser,
        x,
        **numbers,
        eta=share,
        noise=noise if share else None,
        t_end=-math.log(levels.stops[-1]),
    )
    return run_levels(
        steps,
        FilterControl(order, **parts, accept_safety=least),
        x,
        levels,
        settings,
        to_t=lambda sigma: -math.log(sigma),
        begin=lambda run: torch.full_like(run.now.t, size),
        return_info=return_info,
    )
