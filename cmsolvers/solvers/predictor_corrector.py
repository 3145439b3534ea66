"""Predictor-corrector sampling with a score: a step of the reverse SDE, then Langevin steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.launch import derivative
from cmsolvers.engine.run import Options, sampler
from cmsolvers.engine.time_loop import integrate
from cmsolvers.engine.time_run import Draw, TimeRun
from cmsolvers.ops.norms import sums_of_squares
from cmsolvers.processes.sde import Process, ScoreSDE

if TYPE_CHECKING:
    from typing_extensions import Unpack

Predictor = Literal["reverse_diffusion", "ancestral", "euler_maruyama"]
PREDICTORS = ("reverse_diffusion", "ancestral", "euler_maruyama")
VARIANCES = ("posterior", "forward")


class _Steps:
    """The rows of a run, made before it begins, and the steps."""

    name, nodes = "predictor_corrector", (0.0, 1.0)

    def __init__(
        self,
        sde: ScoreSDE,
        times: Sequence[float],
        predictor: str,
        variance: str,
        corrector_steps: int,
        snr: float,
        denoise: bool,
    ) -> None:
        process = sde.process
        ends_clean = not (corrector_steps or denoise)
        places = [_place(process, t, clean=ends_clean and t == times[-1]) for t in times]
        for (t, start), (u, end) in pairwise(zip(times, places, strict=True)):
            if not start[0] * end[1] < end[0] * start[1]:
                raise ValueError(
                    f"ts must lead to lower noise (sigma / alpha); it does not fall from "
                    f"t = {t:g} to {u:g}"
                )
        self._rows = [
            _euler_maruyama(sde, *span)
            if predictor == "euler_maruyama"
            else _chain(sde.stochastic, predictor, variance, *ends)
            for span, ends in zip(pairwise(times), pairwise(places), strict=True)
        ]
        self._damping = [(start[0] / end[0]) ** 2 for start, end in pairwise(places)]
        self._correct, self._snr, self._denoise = corrector_steps, snr, denoise
        self._end = places[-1]
        self.draws = 1 + corrector_steps

    def step(self, run: TimeRun, x: Tensor) -> Tensor:
        """See `predictor_corrector`."""
        w_x, w_score, spread = self._rows[run.i]
        score = run.evaluate(x, 0.0)
        x = run.launch(x, (score,), (w_x, w_score), (spread, run.draw()))
        for j in range(self._correct):
            draw = run.draw(1 + j, (run.t_next, run.t_next))
            x = self._langevin(run, x, draw)
        if self._denoise and run.last:
            alpha, sigma = self._end
            x = run.launch(x, (run.evaluate(x, 1.0),), (1.0 / alpha, sigma * sigma / alpha))
        return x

    def _langevin(self, run: TimeRun, x: Tensor, draw: Draw) -> Tensor:
        """X + e s + sqrt(2 e) z, e = 2 alpha (snr |z| / |s|)^2 of each sample's own."""
        score = run.evaluate(x, 1.0)
        assert score is not None
        z = draw.tensor(torch.promote_types(x.dtype, torch.float32))
        size = sums_of_squares(score).double()
        # Where the score vanishes there is nothing to correct, and no scale for the noise. The
        # other side of a `where` must be finite too, or the gradient is not.
        there = size > 0
        ratio = (sums_of_squares(z).double() / torch.where(there, size, 1.0)).sqrt()
        ratio = torch.where(there, self._snr * ratio, 0.0)
        step = (2.0 * self._damping[run.i]) * ratio.square()
        root = (2.0 * math.sqrt(self._damping[run.i])) * ratio
        if derivative(step):
            column = [-1] + [1] * (x.ndim - 1)
            kick = root.reshape(column) * z + step.reshape(column) * score
            run.launcher.observe(kick)
            return run.launch(x, (kick.to(x.dtype),), (1.0, 1.0))
        return run.launch(x, (score,), (1.0, step), (root, draw))


def _place(process: Process, t: float, *, clean: bool) -> tuple[float, float]:
    """(alpha, sigma) at t, both positive; sigma may be 0 where `clean`."""
    try:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    except ValueError:  # of math, which names nothing
        alpha = sigma = math.nan
    if not (alpha > 0 and (sigma > 0 or (clean and sigma == 0))):
        raise ValueError(
            f"ts must lie where alpha and sigma are positive (sigma may be 0 at the end, without "
            f"corrector and denoise); got t = {t:g} with alpha {alpha:g} and sigma {sigma:g}"
        )
    return alpha, sigma


def _chain(
    stochastic: bool,
    predictor: str,
    variance: str,
    start: tuple[float, float],
    end: tuple[float, float],
) -> tuple[float, float, float]:
    """Weights of x, score and noise in the discrete chain with the marginals of the process.

    The chain's forward step is x -> r x + G z from the end to the start: r = sqrt(1 - beta) and
    G^2 = beta for VP, r = 1 and G^2 = sigma^2 - sigma'^2 for VE.
    """
    r, sigma = start[0] / end[0], start[1]
    kept = r * end[1] / sigma
    added = sigma * sigma * (1.0 - kept) * (1.0 + kept)
    if predictor == "reverse_diffusion":
        if not stochastic:
            return 2.0 - r, 0.5 * added, 0.0
        return 2.0 - r, added, math.sqrt(added)
    spread = math.sqrt(added)
    if variance == "posterior":
        spread *= end[1] / sigma
    return 1.0 / r, added / r, spread


def _euler_maruyama(sde: ScoreSDE, t: float, t_next: float) -> tuple[float, float, float]:
    a, b, g = sde.terms(t)
    dt = t_next - t
    return 1.0 + a * dt, b * dt, g * math.sqrt(abs(dt))


@described(
    order="1 (weak), of the predictor",
    nfe="n (1 + corrector_steps)",
    noise="fresh",
    space="time",
    source="Song et al., Score-Based Generative Modeling through SDEs (2021), algorithms 1 to 5",
)
@sampler
def predictor_corrector(
    sde: ScoreSDE,
    x: Tensor,
    ts: Any,
    *,
    predictor: Predictor = "reverse_diffusion",
    corrector_steps: int = 1,
    snr: float = 0.16,
    variance: Literal["posterior", "forward"] = "posterior",
    denoise: bool = False,
    **options: Unpack[Options],
) -> Any:
    """Sample with a predictor step of the reverse SDE and Langevin steps at each new level.

    The corrector makes x + e s(x) + sqrt(2 e) z with e = 2 alpha_i (snr |z| / |s|)^2. The norms
    are each sample's own, so that no sample depends on its companions (published code averages them
    over the batch); alpha_i, 1 - beta_i of the chain, is (alpha(t) / alpha(t'))^2 of the step just
    made, 1 for VE. Where the score of a sample is 0 it is left alone.

    With r = alpha(t) / alpha(t') and G^2 = sigma(t)^2 - r^2 sigma(t')^2, which for VP and VE is the
    chain of DDPM and of SMLD on any grid of times, the predictors are
    - reverse_diffusion: (2 - r) x + G^2 s + G z (half of G^2 and no noise for the ODE);
    - ancestral: (x + G^2 s) / r and noise of variance G^2 sigma(t')^2 / sigma(t)^2 (`variance` =
      "posterior", as in SMLD and Ho et al.'s smaller choice) or G^2 ("forward", their larger one);
    - euler_maruyama: the step of that solver.

    Weak order 1. n steps take n (1 + corrector_steps) evaluations of the score, one more with
    `denoise`.

    Args:
        sde: `process.reverse(score)`, or `process.probability_flow(score)` (not with ancestral).
        x: [B, ...] at ts[0], in the coordinates of the process. Never written to.
        ts: strictly descending, at least two, where alpha and sigma are positive; sigma may be 0 at
            the end if corrector_steps is 0 and `denoise` is off.
        predictor: "reverse_diffusion", "ancestral" or "euler_maruyama".
        corrector_steps: Langevin steps after each predictor step, 0 or more.
        snr: signal-to-noise ratio of the Langevin steps, positive.
        variance: "posterior" or "forward"; read by the ancestral predictor.
        denoise: end with the mean E[x0 | x] = (x + sigma^2 s) / alpha (Tweedie's formula).
        **options: seed (with M corrector steps, step i uses the draws (1 + M) i to (1 + M) i + M of
            stream 1), noise_sampler (asked for (t, t_next), then for (t_next, t_next) by each
            corrector step, whose noise is no increment in time: a Brownian path cannot give it),
            extra_args, callback, progress, return_info, check_nan and trajectory, as in
            `euler_maruyama`.

    Returns:
        As `euler_maruyama`; with `denoise`, in the coordinates of the data.

    Raises:
        TypeError: as `euler_maruyama`; an sde without a score.
        ValueError: as `euler_maruyama`; times that ascend or have no noise, unknown names, numbers
            out of range.

    Source: Song et al., "Score-Based Generative Modeling through SDEs" (2021), algorithms 1 to 5,
    appendices E, F and G; Ho et al., "Denoising Diffusion Probabilistic Models" (2020), sec. 3.2.
    """
    if type(sde) is not ScoreSDE:
        raise TypeError(
            "sde must be process.reverse(score) or process.probability_flow(score); "
            f"got {check.describe(sde)}"
        )
    times = check.times("ts", ts)
    if times[1] > times[0]:
        raise ValueError(f"ts must be strictly descending; got {times[1]:g} after {times[0]:g}")
    check.choice("predictor", predictor, PREDICTORS)
    check.choice("variance", variance, VARIANCES)
    check.count("corrector_steps", corrector_steps, least=0)
    check.positive("snr", snr)
    check.flag("denoise", denoise)
    if predictor == "ancestral" and not sde.stochastic:
        raise ValueError(
            'predictor must be "reverse_diffusion" or "euler_maruyama" for an ODE; got "ancestral"'
        )
    steps = _Steps(sde, times, predictor, variance, corrector_steps, snr, denoise)
    noisy = sde.stochastic or corrector_steps > 0
    return integrate(steps, sde, x, times, noisy=noisy, **options)
