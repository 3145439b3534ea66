"""Runge-Kutta schemes for SDEs as tables, and the step that runs any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cmsolvers.engine.time_run import TimeRun, Weight, matched

_TOLERANCE = 1e-14


@dataclass(frozen=True)
class Scheme:
    """A table of coefficients: stages y_0 = x, y_1, ..., the last one the new state.

    y_{k+1} = x + dt sum_j drift[k][j] f(y_j, t + nodes[j] dt)
                + sqrt|dt| sum_d (sum_m noise[k][d][m] g(y_m, t + spreads[m] dt)) z_d

    with independent unit normals z_d. The table checks itself: each stage is where its node says,
    the last one is consistent, its noise has unit variance where g is constant.

    Args:
        name: of the solver.
        nodes: where the drift is evaluated, one a stage.
        spreads: where the diffusion is evaluated; with one stage's state each, unless it is
            read before the step as a function of time.
        drift: a row a stage.
        noise: a row a stage: for each normal, its weights on the diffusions.

    Raises:
        ArithmeticError: a table that is not consistent.
    """

    name: str
    nodes: tuple[float, ...]
    spreads: tuple[float, ...]
    drift: tuple[tuple[float, ...], ...]
    noise: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        for row, end in zip(self.drift, (*self.nodes[1:], 1.0), strict=True):
            if abs(math.fsum(row) - end) > _TOLERANCE:
                raise ArithmeticError(f"drift row {row} of {self.name} must sum to {end}")
        variance = math.fsum(math.fsum(w) ** 2 for w in self.noise[-1])
        if abs(variance - 1.0) > _TOLERANCE:
            raise ArithmeticError(f"noise of {self.name} must have variance 1; got {variance}")

    @property
    def draws(self) -> int:
        """Unit normals a step."""
        return len(self.noise[-1])

    def rows(
        self, dt: float, factors: Sequence[tuple[float, float]], spreads: Sequence[Weight]
    ) -> list[list[Weight]]:
        """Weights of (x, outputs, normals) in the stages whose drift is known.

        The drift a y + b output is linear in the stage y, which is a row itself: so each stage
        reads x and the outputs alone.

        Args:
            dt: the step.
            factors: (a, b) of the first stages.
            spreads: the diffusions known so far.
        """
        root, stages = math.sqrt(abs(dt)), len(self.nodes)
        nothing = (0.0,) * (stages + self.draws)
        state: list[Weight] = [1.0, *nothing]
        rows: list[list[Weight]] = []
        slopes: list[list[Weight]] = []
        for k, (a, b) in enumerate(factors):
            slope: list[Weight] = [a * w for w in state] if a else [0.0, *nothing]
            slope[1 + k] = b
            slopes.append(slope)
            state = [1.0, *nothing]
            for weight, terms in zip(self.drift[k], slopes, strict=True):
                move = dt * weight
                state = [w + move * s for w, s in zip(state, terms, strict=True)]
            for d, weights in enumerate(self.noise[k], start=1 + stages):
                for weight, g in zip(weights, spreads, strict=False):
                    if weight and _there(g):
                        state[d] = state[d] + (weight * g) * root
            rows.append(state)
        return rows

    def step(self, run: TimeRun, x: Tensor) -> Tensor:
        """A scheme with one normal, its diffusions at the stages."""
        draw, last = run.draw(), len(self.nodes) - 1
        outputs: list[Tensor | None] = []
        factors: list[tuple[float, float]] = []
        spreads: list[Weight] = []
        y = x
        for k, node in enumerate(self.nodes):
            outputs.append(run.evaluate(y, node))
            a, b, g = run.terms(y, node)
            factors.append((a, b))
            spreads.append(g)
            row = self.rows(run.dt, factors, matched(spreads, x))[-1]
            keep = () if k == last else (x,)
            y = run.launch(x, outputs, row[: k + 2], (row[-1], draw), keep=keep)
        return y


def _there(w: Weight) -> bool:
    return isinstance(w, Tensor) or w != 0.0
