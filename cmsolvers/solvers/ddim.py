"""DDIM and the ancestral sampler of DDPM, in Karras coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class AncestralStages:
    """x' = D + sqrt(s'^2 - up^2) (x - D)/s + up z, up = eta s' sqrt(s^2 - s'^2) / s."""

    eta: float

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """The row for the last level, where the state is."""
        s = levels[-1]
        apart = (s - to) * (s + to) / (s * s)
        up = self.eta * to * math.sqrt(apart)
        keep = math.sqrt(1.0 - self.eta**2 * apart) * to / s
        return (Stage(to, keep, (1.0 - keep,), w_z=up),)


@described(order="1", nfe="n", noise="fresh", source="Song et al., DDIM (2021), eq. 12 and 16")
@sampler
def ddim(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """DDIM: order 1, one evaluation a step. eta = 0 is Euler's PF-ODE step, eta = 1 DDPM's.

    Args:
        denoiser: as in `euler_pf_ode`, and so are x, sigmas and the options.
        x: [B, ...] at level sigmas[0], in Karras coordinates.
        sigmas: strictly descending, the last may be 0.
        eta: share of the posterior's noise, in [0, 1].
        s_noise: factor on the noise.
        options: see `euler_pf_ode`.

    Returns:
        x at sigmas[-1]; with `return_info` or `trajectory` also an `Info`.

    Raises:
        TypeError: see `euler_pf_ode`.
        ValueError: eta outside [0, 1]; see `euler_pf_ode`.

    Source: Song et al., "Denoising Diffusion Implicit Models" (2021), eq. 12 and 16.
    """
    plan = make_plan(
        "ddim",
        check.sigmas("sigmas", sigmas),
        AncestralStages(check.within("eta", eta, 0.0, 1.0)),
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)


@described(order="1 (weak)", nfe="n", noise="fresh", source="Ho et al. (2020), eq. 6-7")
@sampler
def ddpm_ancestral(
    denoiser: Any,
    x: Tensor,
    sigmas: Any,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """Ancestral sampling from DDPM's posterior q(x' | x, x0 = D), with its small variance.

    Order 1 (weak), one evaluation a step: x' = (s'/s)^2 x + (1 - (s'/s)^2) D + up z. eta below 1
    makes it DDIM. Arguments, result and errors are those of `ddim`.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), eq. 6-7.
    """
    plan = make_plan(
        "ddpm_ancestral",
        check.sigmas("sigmas", sigmas),
        AncestralStages(check.within("eta", eta, 0.0, 1.0)),
        s_noise=check.non_negative("s_noise", s_noise),
    )
    return run(plan, denoiser, x, **options)
