"""DPM-Solver++ for the probability-flow ODE: multistep (2M), and (2S) with ancestral noise."""

from __future__ import annotations

import math

from cmsolvers.engine.forms import Form
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.solvers.ancestral import ETA, ancestral
from cmsolvers.solvers.exponential import ratios_back


@solver(
    order="2",
    nfe="n",
    source="Lu et al., DPM-Solver++ (2022), algorithm 2 (2M)",
)
def dpmpp_2m(step: Step) -> Form:
    """DPM-Solver++(2M): order 2 with one evaluation per step, from D and the D before.

    x' = (s'/s) x + (1 - e^-h) [(1 + 1/(2r)) D - 1/(2r) D_last] with h = ln(s/s'), r = h_last / h.
    The first step and a last step to 0 are of order 1; the latter gives D. Noise is never drawn.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), algorithm 2.
    """
    d = step.D(step.x, step.sigma)
    if step.to == 0:
        return d
    _, (_, *back) = ratios_back(step, step.to, 2)
    for u in back:  # -r
        d = d + 0.5 / u * (step.past(1) - d)
    return step.toward(d, step.to)


def dpmpp_2s_step(step: Step, to: float) -> Form:
    """(s'/s) x + (1 - s'/s) D(mid), mid = sqrt(s s'), reached the same way with D.

    That is r = 1/2 in the paper, where D itself drops out. A step to 0 gives D, and one from where
    no data is left takes D at its start.
    """
    d, s = step.D(step.x, step.sigma), step.path.ratio(step.sigma)
    if to == 0:
        return d
    if math.isfinite(s):
        middle = step.path.level(math.sqrt(s) * math.sqrt(step.path.ratio(to)))
        d = step.D(step.toward(d, middle), middle)
    return step.toward(d, to)


@solver(
    order="2 (weak); 2 for eta = 0",
    nfe="2 n, 2 n - 1 where the last level is 0",
    noise="fresh",
    source="Lu et al., DPM-Solver++ (2022), algorithm 1 (2S), with ancestral noise",
    options=[ETA],
)
def dpmpp_2s_ancestral(step: Step, eta: float) -> Form:
    """DPM-Solver++(2S) with ancestral noise: weak order 2, two evaluations per step, one to 0.

    A step is (2S)'s to `down`, with its second evaluation halfway in ln sigma, then noise of size
    `up`, both as in `euler_ancestral`. An eta so large that down = 0 makes a step one of one
    evaluation.

    Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models" (2022), algorithm 1 with r = 1/2; noise as in `euler_ancestral`.
    """
    return ancestral(step, dpmpp_2s_step, eta)
