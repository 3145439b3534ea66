"""Stages as rows of weights over (x, D_0, D_1, ...), a row a sample.

Every stage of the solvers here is x plus multiples of slopes, and a slope is
eps_j = (y_j - D_j) / sigma_j, which is linear in x and the D: so a stage is one weighted step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cmsolvers import ops

_MOST_INPUTS = 4

Multiples: TypeAlias = Sequence[Tensor | float]
"""What each slope is multiplied with: float64 [B], or 0.0 where it is not there."""


class Rows:
    """Builds rows, float64 [B, 1 + n], stage by stage, and applies them.

    Products and sums are elementwise and apart, so that a sample's row does not depend on the
    size of its batch.

    Args:
        batch: B.
        count: n, evaluations of the step.
        device: of the rows.
        target: of the states.
    """

    def __init__(self, batch: int, count: int, device: torch.device, target: torch.device) -> None:
        self._target = target
        self._start = torch.zeros(batch, count + 1, dtype=torch.float64, device=device)
        self._start[:, 0] = 1.0
        self._slopes: list[Tensor] = []

    def evaluated(self, row: Tensor | None, sigma: Tensor) -> None:
        """D_k was asked for at the state of a row (None: at x), level sigma [B]."""
        slope = self._start.clone() if row is None else row.clone()
        slope[:, len(self._slopes) + 1] -= 1.0
        self._slopes.append(slope / sigma[:, None])

    def state(self, multiples: Multiples) -> Tensor:
        """The row of x + sum_j multiples[j] eps_j."""
        return self._add(self._start, multiples)

    def difference(self, multiples: Multiples) -> Tensor:
        """The row of sum_j multiples[j] eps_j."""
        return self._add(torch.zeros_like(self._start), multiples)

    def _add(self, total: Tensor, multiples: Multiples) -> Tensor:
        for weight, slope in zip(multiples, self._slopes, strict=False):
            if isinstance(weight, Tensor):
                total = total + weight[:, None] * slope
        return total

    def apply(self, row: Tensor, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """One row times (x, outputs): one launch for every four outputs."""
        return combine(x, outputs, row[:, : len(outputs) + 1].to(self._target))


def combine(x: Tensor, inputs: Sequence[Tensor], row: Tensor) -> Tensor:
    """A row times (x, inputs), float64 [B, 1 + n] on their device, in launches of four inputs."""
    y = ops.weighted_step(x, tuple(inputs[:_MOST_INPUTS]), row[:, : _MOST_INPUTS + 1].unbind(1))
    for at in range(_MOST_INPUTS, len(inputs), _MOST_INPUTS):
        rest = inputs[at : at + _MOST_INPUTS]
        y = ops.weighted_step(y, tuple(rest), (1.0, *row[:, at + 1 : at + 1 + len(rest)].unbind(1)))
    return y
