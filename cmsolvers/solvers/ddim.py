"""DDIM and the ancestral sampler of DDPM."""

from __future__ import annotations

import math

from cmsolvers.engine.forms import Form
from cmsolvers.engine.options import eta as eta_option
from cmsolvers.engine.solver import solver
from cmsolvers.engine.trace import Step
from cmsolvers.solvers.ancestral import noise_share

_SHARE = "share of the noise of DDPM's posterior, in [0, 1]."


def posterior(step: Step, eta: float) -> Form:
    """Alpha' D + sqrt(s'^2 - up^2) (x - alpha D)/s + up z, up = eta s' sqrt(1 - r'^2 / r^2).

    s is the spread of the noise, r = s / alpha.
    """
    d = step.D(step.x, step.sigma)
    if eta == 0.0:
        return step.toward(d, step.to)
    path, gap = step.path, noise_share(step, step.to)
    before, after = path.sigma(step.sigma), path.sigma(step.to)
    kept = math.sqrt(1.0 - eta**2 * gap) * after / before
    mean = kept * step.x + (path.alpha(step.to) - kept * path.alpha(step.sigma)) * d
    return mean + eta * after * math.sqrt(gap) * step.z()


@solver(
    order="1",
    nfe="n",
    noise="fresh",
    source="Song et al., DDIM (2021), eq. 12 and 16",
    options=[eta_option(0.0, _SHARE, share=True)],
    upward=lambda eta: eta == 0.0,
)
def ddim(step: Step, eta: float) -> Form:
    """DDIM: order 1, one evaluation per step. eta = 1 is DDPM's step.

    eta = 0 is exact where D is constant; in Karras and flow coordinates it is Euler's PF-ODE step.

    Source: Song et al., "Denoising Diffusion Implicit Models" (2021), eq. 12 and 16.
    """
    return posterior(step, eta)


@solver(
    order="1 (weak)",
    nfe="n",
    noise="fresh",
    source="Ho et al. (2020), eq. 6-7",
    options=[eta_option(1.0, _SHARE, share=True)],
)
def ddpm_ancestral(step: Step, eta: float) -> Form:
    """Ancestral sampling from DDPM's posterior q(x' | x, x0 = D), with its small variance.

    Order 1 (weak), one evaluation per step: x' = (s'/s)^2 x + (1 - (s'/s)^2) D + up z. An eta below
    1 makes it DDIM.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), eq. 6-7.
    """
    return posterior(step, eta)
