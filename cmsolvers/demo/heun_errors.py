"""Where Heun's method loses its way in few steps: each step against the ODE solved finely.

Along the ODE dx/dsigma = (x - D) / sigma the state at b is

    x(b) = (b / a) x(a) + (1 - b / a) * (an average of D over the step from a to b),

so what D changes by on the way counts at most 1 - b / a times. Heun's step (Karras et al. 2022,
algorithm 1), written out with D of both ends, counts it (a / b - 1) / 2 times: `r / 2` times the
most that any average gives, with r = a / b. Below r = 2 that is an average; far above it the step
goes beyond where D has been.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict

import torch
from torch import Tensor

from cmsolvers.denoisers import Denoiser
from cmsolvers.schedules import karras_sigmas
from cmsolvers.solvers import euler_pf_ode, heun_pf_ode

RHO = 7.0


class HeunStep(TypedDict):
    """One step of a few-step run, from level `start` to `end`; errors are in pixels' rms.

    Attributes:
        start: level a.
        end: level b.
        ratio: a / b.
        overshoot: how much of D's change the step counts, in units of the most that is right.
        heun: error of this step alone, begun on the true path.
        euler: that of Euler's step from the same point.
        at_end: error of the finished sample if this step alone is long.
        so_far: error of the few-step run after this step.
    """

    start: float
    end: float
    ratio: float
    overshoot: float
    heun: float
    euler: float
    at_end: float
    so_far: float


class HeunErrors(TypedDict):
    """What `measure` finds.

    Attributes:
        fine_steps: steps of the run that stands for the truth.
        samples: how many starting points.
        steps: of the run with the fewest steps, but for the last one, from sigma_min to 0.
        runs: number of steps -> levels passed, and the error there.
        spread: number of steps -> standard deviation of the pixels at the end; "fine" is the truth.
    """

    fine_steps: int
    samples: int
    steps: list[HeunStep]
    runs: dict[str, list[tuple[float, float]]]
    spread: dict[str, float]


def overshoot(ratio: float) -> float:
    """r / 2: how often Heun's step counts D's change, over the most that an average of D gives."""
    return ratio / 2.0


def rms(x: Tensor) -> float:
    """Root mean square of all entries."""
    return float(x.square().mean().sqrt())


class _Truth:
    """The ODE solved in many steps that meet every level of some grids."""

    def __init__(
        self, denoiser: Denoiser, x: Tensor, grids: Sequence[Sequence[float]], steps: int
    ) -> None:
        self._denoiser = denoiser
        levels = [grids[0][0]]
        for level in sorted({level for grid in grids for level in grid}, reverse=True):
            if level < levels[-1] * (1 - 1e-9):  # the same level may be rounded in two ways
                levels.append(level)
        each = -(-steps // (len(levels) - 1))
        self._fine = levels[:1]
        for a, b in pairwise(levels):
            inner = karras_sigmas(each + 1, b, a, RHO, append_zero=False)[1:-1].tolist()
            self._fine += [*inner, b]
        self.steps = len(self._fine) - 1
        self._states = states_of(denoiser, x, self._fine)

    def _index(self, level: float) -> int:
        return min(range(len(self._fine)), key=lambda i: abs(self._fine[i] - level))

    def at(self, level: float) -> Tensor:
        """The true state at a level of the grids."""
        return self._states[self._index(level)]

    def onward(self, x: Tensor, level: float) -> Tensor:
        """Where the ODE carries a state from a level of the grids, at the smallest level.

        Every third level is enough for that: only errors that are large are told in this way.
        """
        rest = self._fine[self._index(level) :]
        return states_of(self._denoiser, x, [*rest[:-1:3], *rest[-1:]])[-1]


def states_of(denoiser: Denoiser, x: Tensor, levels: Sequence[float]) -> list[Tensor]:
    """The states of Heun's method at every one of some levels, x being that at the first."""
    if len(levels) == 1:
        return [x]
    found: list[Tensor] = []
    grid = torch.tensor(levels, dtype=torch.float64)
    end = heun_pf_ode(denoiser, x, grid, callback=lambda s: found.append(s["x"].clone()))
    return [*found, end]


@torch.no_grad()
def measure(
    denoiser: Denoiser,
    x: Tensor,
    counts: tuple[int, ...] = (5, 9, 18),
    *,
    sigma_min: float,
    sigma_max: float,
    fine: int = 200,
) -> HeunErrors:
    """Errors of Heun's method in few steps, on the starting points x.

    Args:
        denoiser: D(x, sigma).
        x: states at sigma_max, [n, ...].
        counts: numbers of steps, at least 3 each; the first is looked at step by step.
        sigma_min: the last level above 0. The step from there to 0 is left out.
        sigma_max: the first level.
        fine: the run that stands for the truth has at least as many steps.
    """
    grids = {
        n: karras_sigmas(n, sigma_min, sigma_max, RHO, append_zero=False).tolist() for n in counts
    }
    truth = _Truth(denoiser, x, list(grids.values()), fine)
    runs: dict[str, list[tuple[float, float]]] = {}
    spread = {"fine": float(truth.at(sigma_min).std())}
    for n, grid in grids.items():
        states = states_of(denoiser, x, grid)
        runs[str(n)] = [
            (level, rms(state - truth.at(level))) for level, state in zip(grid, states, strict=True)
        ]
        spread[str(n)] = float(states[-1].std())
    steps: list[HeunStep] = []
    for i, (a, b) in enumerate(pairwise(grids[counts[0]])):
        alone = states_of(denoiser, truth.at(a), [a, b])[-1]
        euler = euler_pf_ode(denoiser, truth.at(a), torch.tensor([a, b], dtype=torch.float64))
        steps.append(
            HeunStep(
                start=a,
                end=b,
                ratio=a / b,
                overshoot=overshoot(a / b),
                heun=rms(alone - truth.at(b)),
                euler=rms(euler - truth.at(b)),
                at_end=rms(truth.onward(alone, b) - truth.at(sigma_min)),
                so_far=runs[str(counts[0])][i + 1][1],
            )
        )
    return HeunErrors(fine_steps=truth.steps, samples=len(x), steps=steps, runs=runs, spread=spread)
