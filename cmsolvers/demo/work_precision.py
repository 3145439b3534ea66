"""Work against precision: every sampler on a mixture whose exact solution is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

import cmsolvers
from cmsolvers import checks as check
from cmsolvers import karras_sigmas, noise
from cmsolvers.demo.compared_samplers import Solver
from cmsolvers.denoisers.oracles import GaussianMixture
from cmsolvers.engine.catalogue import SOLVERS, Facts

FIRST, LAST = 20.0, 0.01
STEPS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
OPTIONS: dict[str, dict[str, object]] = {
    "restart": {"restarts": [(0.1, 1.0, 4, 2)]},  # without any it is Heun's method
}
"""Options of samplers that are not left at their defaults."""
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Problem:
    """A mixture in one dimension, and the state of many samples of it at the first level.

    The start has the exact marginal, so that nothing but the solver errs.

    Args:
        count: samples.
        seed: of the samples.
    """

    count: int = 1 << 15
    seed: int = 0

    @cached_property
    def data(self) -> GaussianMixture:
        """The exact denoiser of a mixture with three modes of different widths."""
        return GaussianMixture([-1.0, 0.2, 1.1], [0.3, 0.2, 0.4], [0.3, 0.3, 0.4])

    def quantiles(self, sigma: float) -> Tensor:
        """Of the exact marginal at sigma, at (k + 1/2) / count: [count], float64."""
        widths = (self.data.stds**2 + sigma**2).sqrt()
        reach = 12 * widths.max().item()
        points = torch.linspace(-reach, reach, 400_001, dtype=torch.float64)[:, None]
        cdf = torch.special.ndtr((points - self.data.means[:, 0]) / widths) @ self.data.weights
        wanted = (torch.arange(self.count, dtype=torch.float64) + 0.5) / self.count
        right = torch.searchsorted(cdf, wanted).clamp(1, len(cdf) - 1)
        low, high = cdf[right - 1], cdf[right]
        share = (wanted - low) / (high - low)
        left = points[right - 1, 0]
        result: Tensor = left + share * (points[right, 0] - left)
        return result

    @cached_property
    def start(self) -> Tensor:
        """The exact quantiles at the first level, shuffled: [count, 1], float64."""
        order = torch.argsort(noise.uniform((self.count, 1), self.seed)[:, 0])
        return self.quantiles(FIRST)[order][:, None]

    @cached_property
    def solution(self) -> Tensor:
        """Where the probability-flow ODE takes `start`: in one dimension it keeps the order."""
        ranks = torch.argsort(torch.argsort(self.start[:, 0]))
        return self.quantiles(LAST)[ranks][:, None]

    def path_error(self, x: Tensor) -> float:
        """Root mean squared distance to the exact solution of the ODE."""
        return (x - self.solution).square().mean().sqrt().item()

    def distance(self, x: Tensor) -> float:
        """Wasserstein-1 distance to the exact distribution at the last level."""
        return (x[:, 0].sort().values - self.quantiles(LAST)).abs().mean().item()

    @cached_property
    def floor(self) -> float:
        """Distance that as many independent draws from the exact distribution have, on average."""
        exact, found = self.quantiles(LAST), []
        for draw in range(16):
            u = noise.uniform((self.count, 1), self.seed, draw=1 + draw, dtype=torch.float64)[:, 0]
            drawn = exact[(u * self.count).long().clamp(max=self.count - 1)]
            found.append((drawn.sort().values - exact).abs().mean().item())
        return sum(found) / len(found)


@dataclass(frozen=True)
class Point:
    """Cost and errors of one run of a solver.

    Attributes:
        name: of the solver.
        nfe: evaluations, the mean over the samples where they differ.
        error: root mean squared distance to the exact solution of the ODE.
        distance: Wasserstein-1 distance to the exact distribution.
        noisy: whether the solver adds noise, as it was run.
    """

    name: str
    nfe: float
    error: float
    distance: float
    noisy: bool


def _grids(facts: Facts) -> Iterator[dict[str, object]]:
    if facts.adaptive:
        ends = torch.tensor([FIRST, LAST], dtype=torch.float64)
        for tolerance in TOLERANCES:
            yield {"sigmas": ends, "rtol": tolerance, "atol": tolerance / 10}
    else:
        for n in STEPS:
            yield {"sigmas": karras_sigmas(n + 1, LAST, FIRST, append_zero=False)}


def shown_solvers() -> dict[str, Facts]:
    """The samplers of the catalogue that take a denoiser, by name."""
    chosen = {name: facts for name, facts in SOLVERS.items() if facts.space == "sigma"}
    chosen.pop("consistency_sample", None)
    return chosen


def measure(problem: Problem, shown: Callable[[str], object] = lambda name: None) -> list[Point]:
    """Run each of `shown_solvers` on all grids, or with all tolerances where it is adaptive.

    Args:
        problem: what is sampled.
        shown: called with the name of each sampler before it runs.
    """
    check.function("shown", shown)
    points = []
    for name, facts in shown_solvers().items():
        shown(name)
        solver: Solver = getattr(cmsolvers, name)
        run = partial(solver, problem.data, return_info=True)
        for grid in _grids(facts):
            options = {**grid, **OPTIONS.get(name, {})}
            seed = {} if facts.noise == "none" else {"seed": problem.seed}
            x, info = run(problem.start, **options, **seed)
            nfe = float(torch.as_tensor(info.nfe, dtype=torch.float64).mean())
            noisy = False
            if seed:
                first = problem.start[:8]
                noisy = not torch.equal(*(run(first, **options, seed=k)[0] for k in (1, 2)))
            error, distance = problem.path_error(x), problem.distance(x)
            points.append(Point(name, nfe, error, distance, noisy))
    return points


def save(path: Path, points: list[Point], problem: Problem) -> Path:
    """Write the points, and what the problem was, as JSON."""
    facts = {"first": FIRST, "last": LAST, "count": problem.count, "floor": problem.floor}
    rows = [asdict(point) for point in points]
    path.write_text(json.dumps({**facts, "points": rows}, indent=1) + "\n")
    return path
