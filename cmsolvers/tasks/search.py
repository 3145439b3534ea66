"""Greedy search for the levels of multistep consistency sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import SupportsFloat, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise, ops
from cmsolvers.denoisers import ConsistencyFunction
from cmsolvers.engine.observers import bar
from cmsolvers.processes.coordinates import require_karras

__all__ = ["GreedySigmas", "greedy_sigmas"]


Metric: TypeAlias = Callable[[Tensor], SupportsFloat]


@dataclass(frozen=True)
class GreedySigmas:
    """Levels found by `greedy_sigmas`, and what the metric said of them.

    Attributes:
        sigmas: float64 [steps], descending, for `consistency_sample`; the first n of them are the
            levels found for n steps.
        metrics: of samples from the first 1, 2, ... levels.
        evaluations: calls of the metric.
    """

    sigmas: Tensor
    metrics: tuple[float, ...]
    evaluations: int


@torch.no_grad()
def greedy_sigmas(
    f: Callable[..., Tensor],
    x: Tensor,
    metric: Metric,
    steps: int,
    *,
    sigma_max: float = 80.0,
    sigma_min: float = 0.002,
    iterations: int = 12,
    seed: noise.SeedLike = 0,
    extra_args: Mapping[str, object] | None = None,
    progress: bool = False,
) -> GreedySigmas:
    """Levels for `consistency_sample`, one after the other, each the best after those before it.

    A ternary search on ln sigma between sigma_min and the level before: it takes the metric to fall
    and then to rise again there. Every candidate is sampled from the same x with the same noise, so
    the metric is a deterministic function of the level; f is called once per candidate, because the
    samples before the new level are kept. Of all candidates the best is taken.

    Args:
        f: `f(x, sigma, **extra_args)`, as in `consistency_sample`.
        x: [B, ...] at level sigma_max; the metric is given B samples.
        metric: samples [B, ...] -> a number, lower is better, such as a Frechet distance to data.
        steps: how many levels in all; the first is sigma_max.
        sigma_max: where sampling starts.
        sigma_min: where f is the identity, positive; no level lies below.
        iterations: of each ternary search; each takes two evaluations and leaves two thirds of the
            interval of ln sigma.
        seed: as in `euler_pf_ode`; the noise is that of `consistency_sample` with this seed.
        extra_args: for f.
        progress: show a bar with the level and the number of evaluations.

    Returns:
        `GreedySigmas`.

    Raises:
        TypeError: arguments of the wrong kind, a metric that returns no number.
        ValueError: numbers out of range, a metric that is NaN, sigma_min not that of f; what f
            returns does not fit x.

    Source: Song et al., "Consistency Models" (2023), section 3 and appendix C: ternary search for
    one time point at a time.
    """
    require_karras("f", check.function("f", f))
    check.state("x", x)
    check.function("metric", metric)
    count = check.count("steps", steps)
    low, high = check.sigma_range(sigma_min, sigma_max)
    if isinstance(f, ConsistencyFunction) and f.sigma_min != low:
        raise ValueError(
            f"sigma_min must be that of f: pass sigma_min={f.sigma_min:g}; got {low:g}"
        )
    rounds = check.count("iterations", iterations)
    extra = check.options("extra_args", extra_args)
    check.flags(progress=progress)
    judge = _Judge(f, metric, low, noise.key(seed, x.shape[0], device=x.device), extra)
    sigmas = [high]
    with bar(progress, "greedy_sigmas", 2 * rounds * (count - 1) + 1) as progress_bar:

        def tried(at: Tensor, draw: int | None, level: float) -> _Trial:
            trial = judge.trial(at, draw, level)
            progress_bar.advance("sigma", level, judge.evaluations)
            return trial

        best = tried(x, None, high)
        metrics = [best.metric]
        for draw in range(count - 1):
            best = _ternary(partial(tried, best.samples, draw), low, sigmas[-1], rounds)
            sigmas.append(best.level)
            metrics.append(best.metric)
    found = torch.tensor(sigmas, dtype=torch.float64, device="cpu")
    return GreedySigmas(found, tuple(metrics), judge.evaluations)


@dataclass(frozen=True)
class _Trial:
    level: float
    metric: float
    samples: Tensor


class _Judge:
    """Makes the samples of one more level, and measures them."""

    def __init__(
        self,
        f: Callable[..., Tensor],
        metric: Metric,
        end: float,
        key: noise.Key,
        extra: Mapping[str, object],
    ) -> None:
        self._f, self._metric, self._end = f, metric, end
        self._key, self._extra = key, extra
        self.evaluations = 0

    def trial(self, x: Tensor, draw: int | None, level: float) -> _Trial:
        """f at a level: of x itself where draw is None, else of x noised to that level."""
        if draw is not None:
            w_z = math.sqrt((level - self._end) * (level + self._end))
            x = ops.weighted_step(
                x, (), (1.0,), w_z=w_z, seed=self._key, stream=noise.STEPS, draw=draw
            )
        sigma = torch.full((x.shape[0],), level, dtype=x.dtype, device=x.device)
        samples = check.model_output("f", self._f(x, sigma, **self._extra), x).to(x.dtype)
        self.evaluations += 1
        return _Trial(level, check.real("metric's result", self._metric(samples)), samples)


def _ternary(trial: Callable[[float], _Trial], low: float, high: float, rounds: int) -> _Trial:
    """The best of the points that a ternary search on ln sigma visits."""
    a, b = math.log(low), math.log(high)
    best: _Trial | None = None
    for _ in range(rounds):
        third = (b - a) / 3.0
        left, right = trial(math.exp(a + third)), trial(math.exp(b - third))
        if left.metric <= right.metric:
            b -= third
        else:
            a += third
        for one in (left, right):
            if best is None or one.metric < best.metric:
                best = one
    assert best is not None
    return best
