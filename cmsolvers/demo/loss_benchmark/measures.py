"""What a trained few-step model is worth: against the exact map, and as a distribution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cmsolvers import consistency_sample, euler_pf_ode, noise
from cmsolvers.demo.loss_benchmark.entry import Entry, Model
from cmsolvers.demo.loss_benchmark.setting import STEPS, Setting
from cmsolvers.processes.coordinates import Coordinates, coordinates_of
from cmsolvers.solvers import flow_map_sample
from cmsolvers.tasks import metrics
from cmsolvers.tasks.exact_problems import ExactProblem

_LATENTS, _SAMPLES, _REFERENCE, _OTHER = range(4)
"""Seeds of the measured noise, samples and exact samples: the same for all recipes and seeds."""
_SETS = 8  # of exact samples, for the floor
_LEAST = 1e-12  # stands for level 0, where some functions end: the sampler wants a positive one


@dataclass(frozen=True)
class Measured:
    """The quality of samples in a number of steps.

    Attributes:
        rms: root of the mean squared distance to the exact map, per coordinate; sigma_data = 0.5.
            It is that of the whole way for a deterministic sampler. A consistency function puts new
            noise in after every step, so no exact end belongs to its start; what is exact is that
            its last step takes the state x_t it has reached to f_{t->end}(x_t). So its number is
            that of f at the last level visited, on exact states there (the trajectories of the same
            latents).
        distance: sliced Wasserstein-2 distance of the samples to exact ones.
        modes: components found among the samples.
        inside: share of the samples in the core of a component.
    """

    rms: float
    distance: float
    modes: int
    inside: float


def levels(entry: Entry, path: Coordinates, steps: int) -> list[float]:
    """Levels of a run in so many steps: the start, then sigma / alpha = (n - i) / i, and the end.

    In flow coordinates they are 1, (n - 1) / n, ..., 1 / n, 0; other recipes visit the same ratios.
    """
    start = entry.start
    if start is None:
        start = 80.0 if path.karras else path.max_level
    between = [path.level((steps - i) / i) for i in range(1, steps)]
    return [start, *between, entry.end]


def sample(entry: Entry, model: Model, x: Tensor, grid: list[float], seed: int) -> Tensor:
    """Run the sampler of an entry from x at the first level of the grid to the last."""
    with torch.no_grad():
        if entry.sampler is not None:
            return entry.sampler(model, x, grid, seed)
        if entry.kind == "denoiser":
            return euler_pf_ode(model, x, grid)
        if entry.kind == "consistency":
            end = max(grid[-1], _LEAST)
            return consistency_sample(model, x, grid[:-1], sigma_min=end, seed=seed)
        return flow_map_sample(model, x, grid)


def measure(
    entry: Entry, model: Model, problem: ExactProblem, setting: Setting
) -> dict[int, Measured]:
    """Quality of a model by number of steps, for each of `STEPS`."""
    path = coordinates_of(model)
    found = {}
    for steps in STEPS:
        grid = levels(entry, path, steps)
        x = start_states(problem, path, grid[0], setting.samples, _SAMPLES)
        made = sample(entry, model, x.float(), grid, seed=_SAMPLES)
        if not bool(made.isfinite().all()):
            found[steps] = Measured(float("inf"), float("inf"), 0, 0.0)
            continue
        found[steps] = Measured(
            map_error(entry, model, problem, grid, setting),
            metrics.sliced_wasserstein(made, exact_samples(problem, setting.samples)),
            problem.modes_found(made),
            float(problem.shares(made).sum()),
        )
    return found


def map_error(
    entry: Entry, model: Model, problem: ExactProblem, grid: list[float], setting: Setting
) -> float:
    """The `rms` of `Measured` for a run over these levels."""
    path = coordinates_of(model)
    if entry.kind == "consistency":
        x = exact_states(problem, path, grid[0], grid[-2], setting.latents)
        grid = grid[-2:]
    else:
        x = start_states(problem, path, grid[0], setting.latents, _LATENTS)
    first = levels(entry, path, 1)[0]
    aim = exact_states(problem, path, first, grid[-1], setting.latents)
    made = sample(entry, model, x.float(), grid, seed=_LATENTS)
    return float((made.double() - aim).square().mean().sqrt())


def start_states(
    problem: ExactProblem, path: Coordinates, level: float, n: int, seed: int
) -> Tensor:
    """Noise alone, as large as at that level: float64 [n, d]."""
    z = noise.normal((n, problem.size), seed, stream=noise.LATENT, dtype=torch.float64)
    return float(path.sigma(level)) * z


@lru_cache(maxsize=64)
def exact_states(
    problem: ExactProblem, path: Coordinates, start: float, level: float, n: int
) -> Tensor:
    """Where the exact map takes the latents; solved once per process."""
    x = start_states(problem, path, start, n, _LATENTS)
    return problem.flow_map(x, start, level, path)


@lru_cache(maxsize=16)
def exact_samples(problem: ExactProblem, n: int) -> Tensor:
    """The samples that all others are compared with."""
    return problem.sample(n, _REFERENCE)


def floor(problem: ExactProblem, setting: Setting) -> float:
    """Distance of other exact samples, as many, to those that all are compared with: a mean."""
    found = [
        metrics.sliced_wasserstein(
            problem.sample(setting.samples, _OTHER, draw=draw),
            exact_samples(problem, setting.samples),
        )
        for draw in range(_SETS)
    ]
    return sum(found) / len(found)
