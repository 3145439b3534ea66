"""The samplers that the demo compares, all from the same initial noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

import torch
from torch import Tensor

import cmsolvers
from cmsolvers import noise
from cmsolvers.engine import catalogue
from cmsolvers.engine.adaptive import AdaptiveInfo
from cmsolvers.engine.observers import Info
from cmsolvers.processes import VP
from cmsolvers.schedules import karras_sigmas
from cmsolvers.solvers import consistency_sample, euler_maruyama
from cmsolvers.training.models import CONSISTENCY_KINDS, Model, Spec

CONSISTENT = (*CONSISTENCY_KINDS, "consistency")
Callback: TypeAlias = Callable[[dict[str, Any]], object]
Solver: TypeAlias = Callable[..., tuple[Tensor, Info | AdaptiveInfo]]
"""A sampler on noise levels, called with return_info=True."""


class Common(TypedDict):
    """Keyword arguments that `draw` hands to any sampler."""

    seed: noise.SeedLike
    callback: Callback | None
    progress: bool


@dataclass(frozen=True)
class Method:
    """One sampler of the comparison, and how the report shows it.

    Attributes:
        key: name in files.
        label: name in pictures.
        model: which checkpoint it samples, "score" or a consistency model's kind.
        steps: the numbers of steps that the report compares.
        shown: the number of steps that overviews show.
    """

    key: str
    label: str
    model: str
    steps: tuple[int, ...]
    shown: int


METHODS = (
    Method("em", "reverse SDE, Euler-Maruyama", "score", (25, 50, 100), 100),
    Method("ddpm", "DDPM ancestral", "score", (10, 25, 100), 100),
    Method("euler", "PF-ODE, Euler", "score", (10, 18, 40), 40),
    Method("heun", "PF-ODE, Heun", "score", (5, 9, 18), 18),
    Method("cd", "consistency distillation", "cd", (1, 2, 4), 1),
    Method("ct", "consistency training", "ct", (1, 2, 4), 1),
    Method("ect", "easy consistency tuning", "ect", (1, 2, 4), 1),
)
BY_KEY = {method.key: method for method in METHODS}


def latents(shape: Sequence[int], n: int, seed: int) -> Tensor:
    """The unit noise that every sampler starts from, [n, *shape]."""
    return noise.normal((n, *shape), seed, stream=noise.LATENT)


def vp_times(spec: Spec, steps: int) -> Tensor:
    """Descending times of the VP process whose noise levels are those of the rho = 7 grid."""
    levels = karras_sigmas(steps + 1, 0.02, spec.sigma_max, append_zero=False)
    times: Tensor = VP().t_of_sigma(levels)
    return times


SHORT = {"heun": "heun_pf_ode", "euler": "euler_pf_ode", "ddpm": "ddpm_ancestral"}
"""Short names of samplers."""


def solver_of(name: str) -> Solver:
    """A sampler on noise levels by its name or short name.

    Raises:
        ValueError: there is none, or it takes no denoiser.
    """
    full = SHORT.get(name, name)
    facts = catalogue.SOLVERS.get(full)
    if facts is None or facts.space != "sigma" or full == "consistency_sample":
        known = (f.name for f in catalogue.SOLVERS.values() if f.space == "sigma")
        raise ValueError(
            f"sampler must be one of {', '.join(sorted((*known, *SHORT)))}, em or consistency; "
            f"got {name!r}"
        )
    solver: Solver = getattr(cmsolvers, full)
    return solver


@torch.no_grad()
def draw(
    sampler: str,
    model: Model,
    z: Tensor,
    steps: int,
    seed: noise.SeedLike,
    *,
    levels: Sequence[float] | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> tuple[Tensor, int]:
    """Samples of a model by a named sampler, and their NFE.

    Args:
        sampler: "em" or what `solver_of` knows for a score model; "consistency" or the model's
            kind for a consistency model.
        model: what it samples.
        z: unit noise [n, ...].
        steps: how many; for consistency models it is the number of levels that counts.
        seed: of the noise on the way; a seed or a `noise.Key`.
        levels: for consistency models, the levels where f is called; the first is sigma_max.
        callback: handed to the sampler.
        progress: show a bar.

    Raises:
        ValueError: a sampler that does not fit the model, bad steps or levels.
    """
    spec, x = model.spec, z * model.spec.sigma_max
    if (sampler in CONSISTENT) != (spec.kind != "score"):
        raise ValueError(f"sampler must fit the model, a {spec.kind} model; got {sampler!r}")
    common = Common(seed=seed, callback=callback, progress=progress)
    info: Info | AdaptiveInfo
    if sampler in CONSISTENT:
        grid = [spec.sigma_max] if levels is None else list(levels)
        x, info = consistency_sample(
            model.function, x, grid, sigma_min=spec.sigma_min, return_info=True, **common
        )
    elif sampler == "em":
        process, times = VP(), vp_times(spec, steps)
        sde = process.reverse(process.score_of(model.function))
        start = z * float(process.sigma(times[0]))
        x, info = euler_maruyama(sde, start, times, return_info=True, **common)
        x = x / float(process.alpha(times[-1]))
    else:
        sigmas = karras_sigmas(steps, spec.sigma_min, spec.sigma_max)
        x, info = solver_of(sampler)(model.function, x, sigmas, return_info=True, **common)
    return x, int(torch.as_tensor(info.nfe).max())
