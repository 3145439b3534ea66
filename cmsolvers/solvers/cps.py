"""Steps whose noise is a share of the level's: coefficients-preserving sampling."""

from __future__ import annotations

import math

from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import eta as eta_option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step


@solver(
    order="1 for eta = 0",
    nfe="n",
    noise="fresh",
    source="Wang & Yu, Coefficients-Preserving Sampling (2025)",
    options=[
        eta_option(
            0.7,
            "in [0, 1]: noise of size s' sin(eta pi / 2) of the s' that the next level has.",
            share=True,
        )
    ],
)
def cps(step: Step, eta: float) -> Form:
    """Coefficients-preserving sampling: DDIM's step, part of its noise replaced by fresh noise.

    x' = alpha' D + s' cos(eta pi / 2) e + s' sin(eta pi / 2) z, where e = (x - alpha D) / s is the
    noise that the denoiser sees in x and s, s' are the spreads of both levels. So every state has
    the noise that its level says, however large the steps are: it is made for exploring in
    reinforcement learning on flow models (`log_prob=True`). The share of fresh noise does not fall
    as steps are added: with eta > 0 the distribution of the samples does not converge to that of
    the data. A last step to 0 gives D.

    Source: Wang & Yu, "Coefficients-Preserving Sampling for Reinforcement Learning with Flow
    Matching" (2025); eta = 0 is Song et al., "Denoising Diffusion Implicit Models" (2021), eq. 12.
    """
    path = step.path
    d, after = step.D(step.x, step.sigma), path.sigma(step.to)
    kept = after * math.cos(0.5 * math.pi * eta) / path.sigma(step.sigma)
    mean = kept * step.x + (path.alpha(step.to) - kept * path.alpha(step.sigma)) * d
    return mean + after * math.sin(0.5 * math.pi * eta) * step.z()
