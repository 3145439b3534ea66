"""Predictor-corrector sampling of a reverse SDE: a step in time, then Langevin steps in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from cmsolvers import checks as check
from cmsolvers.engine.forms import Form
from cmsolvers.engine.live import held
from cmsolvers.engine.live_run import LiveStep
from cmsolvers.engine.options import Option, chosen
from cmsolvers.engine.time_solver import time_solver
from cmsolvers.engine.time_steps import TimeStep
from cmsolvers.ops.norms import sums_of_squares
from cmsolvers.processes.sde import Process, ScoreSDE
from cmsolvers.solvers.euler_maruyama import euler_maruyama_step


def _ratio(name: str, value: object) -> float:
    """A positive number whose square float64 holds."""
    return check.within(name, check.positive(name, value), 0.0, 1e50)


def _check(
    sde: object,
    times: Sequence[float],
    predictor: str,
    corrector_steps: int,
    snr: float,
    step_size: str,
    variance: str,
    denoise: bool,
) -> None:
    if type(sde) is not ScoreSDE:
        raise TypeError(
            "sde must be process.reverse(score) or process.probability_flow(score); "
            f"got {check.describe(sde)}"
        )
    if times[1] > times[0]:
        raise ValueError(f"ts must be strictly descending; got {times[1]:g} after {times[0]:g}")
    if predictor == "ancestral" and not sde.stochastic:
        raise ValueError(
            'predictor must be "reverse_diffusion" or "euler_maruyama" for an ODE; got "ancestral"'
        )
    ends_clean = not (corrector_steps or denoise)
    places = [_place(sde.process, t, clean=ends_clean and t == times[-1]) for t in times]
    for (t, start), (u, end) in pairwise(zip(times, places, strict=True)):
        if not start[0] * end[1] < end[0] * start[1]:
            raise ValueError(
                f"ts must lead to lower noise (sigma / alpha); it does not fall from "
                f"t = {t:g} to {u:g}"
            )


@time_solver(
    order="1 (weak), of the predictor",
    nfe="n (1 + corrector_steps)",
    source="Song et al., Score-Based Generative Modeling through SDEs (2021), algorithms 1 to 5",
    options=[
        Option(
            "predictor",
            "reverse_diffusion",
            chosen("reverse_diffusion", "ancestral", "euler_maruyama"),
            '"reverse_diffusion", "ancestral" (not for an ODE) or "euler_maruyama".',
        ),
        Option(
            "corrector_steps",
            1,
            lambda name, value: check.count(name, value, least=0),
            "Langevin steps after each predictor step, 0 or more.",
        ),
        Option("snr", 0.16, _ratio, "signal-to-noise ratio of the Langevin steps, positive."),
        Option(
            "step_size",
            "level",
            chosen("level", "batch"),
            'of the Langevin steps: "level", from the level alone; "batch", from the norms of '
            "noise and score, averaged over the batch, as published. The latter makes a sample "
            "depend on the others, and is wrong in few dimensions.",
        ),
        Option(
            "variance",
            "posterior",
            chosen("posterior", "forward"),
            '"posterior" or "forward"; read by the ancestral predictor.',
        ),
        Option(
            "denoise",
            False,
            check.flag,
            "end with the mean E[x0 | x] = (x + sigma^2 s) / alpha (Tweedie's formula).",
        ),
    ],
    draws=lambda corrector_steps, **_: 1 + corrector_steps,
    checked=_check,
    noisy=lambda corrector_steps, **_: corrector_steps > 0,
    live=lambda step_size, corrector_steps, **_: step_size == "batch" and corrector_steps > 0,
    exact=False,  # Langevin steps move the spread towards that of the score
)
def predictor_corrector(
    step: TimeStep,
    predictor: str,
    corrector_steps: int,
    snr: float,
    step_size: str,
    variance: str,
    denoise: bool,
) -> Form:
    """Sample with a predictor step of the reverse SDE and Langevin steps at each new level.

    The corrector makes x + e s(x) + sqrt(2 e) z with e = 2 a (snr sigma(t'))^2: where noise hides
    the data, |s| is |z| / sigma. `step_size` = "batch" is the published e = 2 a (snr |z| / |s|)^2,
    with norms averaged over the batch; where the score is 0 everywhere it leaves x alone. The
    factor a is 1 - beta of the chain at the level reached: (alpha(t') / alpha(t''))^2 with t'' the
    time that comes next (alpha 1 after the last one), and 1 for VE. In Gaussian data the corrector
    alone leaves a variance that is e / (2 variance) too large, at most snr^2.

    With r = alpha(t) / alpha(t') and G^2 = sigma(t)^2 - r^2 sigma(t')^2, which for VP and VE is the
    chain of DDPM and of SMLD on any grid of times, the predictors are
    - reverse_diffusion: (2 - r) x + G^2 s + G z (half of G^2 and no noise for the ODE);
    - ancestral: (x + G^2 s) / r and noise of variance G^2 sigma(t')^2 / sigma(t)^2 (`variance` =
      "posterior", as in SMLD and Ho et al.'s smaller choice) or G^2 ("forward", their larger one);
    - euler_maruyama: the step of that solver.

    Weak order 1. n steps take n (1 + corrector_steps) evaluations of the score, one more with
    `denoise`. With M corrector steps, step i uses the draws (1 + M) i to (1 + M) i + M of noise
    stream 1; a noise_sampler is asked for (t, t_next), then for (t_next, t_next) by each corrector
    step, whose noise is no increment in time: a Brownian path cannot give it.

    Args:
        sde: `process.reverse(score)`, or `process.probability_flow(score)`.
        ts: strictly descending, at least two, where alpha and sigma are positive; sigma may be 0 at
            the end if corrector_steps is 0 and `denoise` is off.

    Returns:
        x at ts[-1], in the dtype, layout and device of x, with `denoise` in the coordinates of the
        data; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: an sde without a score.
        ValueError: times that ascend or have no noise.

    Source: Song et al., "Score-Based Generative Modeling through SDEs" (2021), algorithms 1 to 5,
    appendices E, F and G; Ho et al., "Denoising Diffusion Probabilistic Models" (2020), sec. 3.2.
    """
    sde: ScoreSDE = step.sde
    clean = step.last and not (corrector_steps or denoise)
    start = _place(sde.process, step.t, clean=False)
    end = _place(sde.process, step.to, clean=clean)
    if predictor == "euler_maruyama":
        x = euler_maruyama_step(step)
    else:
        w_x, w_score, spread = _chain(sde.stochastic, predictor, variance, start, end)
        x = w_x * step.x + w_score * step.score(step.x, step.t) + spread * step.z()
    alpha, sigma = end
    below = 1.0 if step.after is None else float(sde.process.alpha(step.after))
    kept = (alpha / below) ** 2
    for j in range(corrector_steps):
        z = step.z(1 + j, (step.to, step.to))
        if step_size == "batch":
            x = _by_norms(step, x, z, snr, kept)
        else:
            e = 2.0 * kept * (snr * sigma) ** 2
            x = x + e * step.score(x, step.to) + math.sqrt(2.0 * e) * z
    if denoise and step.last:
        x = (x + sigma * sigma * step.score(x, step.to)) / alpha
    return x


def _by_norms(step: TimeStep, x: Form, z: Form, snr: float, kept: float) -> Form:
    """The published Langevin step, e = 2 kept (snr |z| / |s|)^2 with mean norms of the batch."""
    assert isinstance(step, LiveStep)
    x = held(step.tensor(x))
    score = step.score(x, step.to)
    s = step.tensor(score)
    normal = step.normal(z, torch.promote_types(s.dtype, torch.float32))
    signal, size = (sums_of_squares(t).double().sqrt().mean() for t in (normal, s))
    # Where the score vanishes there is nothing to correct, and no scale for the noise. The other
    # side of a `where` must be finite too, or the gradient is not.
    there = size > 0
    ratio = torch.where(there, snr * signal / torch.where(there, size, 1.0), 0.0).expand(len(s))
    return x + 2.0 * kept * ratio.square() * score + 2.0 * math.sqrt(kept) * ratio * z


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
