"""Sampling from a consistency function, in one step or many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers import ConsistencyFunction
from cmsolvers.engine.catalogue import described
from cmsolvers.engine.plan import Stage, make_plan
from cmsolvers.engine.run import Options, run, sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True, slots=True)
class ConsistencyStages:
    """x' = f + sqrt(s'^2 - sigma_min^2) z; the last step gives f."""

    sigma_min: float

    def __call__(self, levels: Sequence[float], to: float) -> tuple[Stage, ...]:
        """The row for the next level; f ends at sigma_min, so its spread is not that of `to`."""
        e = self.sigma_min
        noise = math.sqrt((to - e) * (to + e)) if to > e else 0.0
        return (Stage(to, 0.0, (1.0,), w_z=noise, exact=False),)


@described(
    order="one-step map",
    nfe="n",
    noise="fresh",
    source="Song et al., Consistency Models (2023), algorithm 1",
)
@sampler
def consistency_sample(
    f: Any,
    x: Tensor,
    sigmas: Any,
    *,
    sigma_min: float = 0.002,
    s_noise: float = 1.0,
    **options: Unpack[Options],
) -> Any:
    """Multistep consistency sampling: f at each level, noised to the next in between.

    Args:
        f: `f(x, sigma, **extra_args) -> x` at sigma_min, sigma of shape [B]; a
            `ConsistencyFunction` is folded into the step.
        x: [B, ...] with standard deviation sigmas[0] of noise on it. Never written to.
        sigmas: strictly descending, at least one: one level is one step. Levels below sigma_min
            count as sigma_min, and a 0 at the end is left out, because f is the identity there.
        sigma_min: the level where f is the identity, positive.
        s_noise: factor on the noise.
        options: see `euler_pf_ode`.

    Returns:
        f at the last level; with `return_info` or `trajectory` also an `Info`, whose NFE is the
        number of levels. A trajectory holds the noised state at each of them, and f as level 0.

    Raises:
        TypeError: see `euler_pf_ode`.
        ValueError: sigma_min not positive, or not that of a `ConsistencyFunction`; see
            `euler_pf_ode`.

    Source: Song et al., "Consistency Models" (2023), algorithm 1.
    """
    end = check.positive("sigma_min", sigma_min)
    if isinstance(f, ConsistencyFunction) and f.sigma_min != end:
        raise ValueError(f"sigma_min must be that of f, {f.sigma_min:g}; got {end:g}")
    levels = [max(s, end) for s in check.sigmas("sigmas", sigmas, least=1) if s > 0]
    plan = make_plan(
        "consistency_sample",
        (*levels, 0.0),
        ConsistencyStages(end),
        s_noise=check.non_negative("s_noise", s_noise),
        argument="f",
    )
    return run(plan, f, x, **options)
