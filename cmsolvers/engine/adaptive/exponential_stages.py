"""The stages of DPM-Solver as multiples of eps, a step size a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers.engine.adaptive.rows import Multiples

NODES = {2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}
"""Where the denoiser is asked in a step of h in -ln sigma, by order."""


class ExponentialStages:
    """What each eps is multiplied with in a step of size h [b] from sigma [b].

    Source: Lu et al., "DPM-Solver" (2022), algorithms 1 and 2 and section 3.2, with alpha = 1:
    there sigma' (e^h - 1) is -sigma (e^-h - 1).
    """

    def __init__(self, sigma: Tensor, h: Tensor) -> None:
        self._sigma, self._h = sigma, h

    def _first(self, r: float) -> Tensor:
        """-sigma_r (e^(r h) - 1)."""
        return self._sigma * torch.expm1(-r * self._h)

    def _second(self, r: float) -> Tensor:
        """-sigma_r ((e^(r h) - 1) / (r h) - 1), 0 at h = 0."""
        size = r * self._h
        value = self._first(r) / size + self._sigma * torch.exp(-size)
        return torch.where(size > 0, value, 0.0)

    def inner(self, nodes: tuple[float, ...], k: int) -> Multiples:
        """Multiples of the state at the node k."""
        first = self._first(nodes[k])
        if k == 1:
            return (first,)
        bend = self._second(nodes[2]) * (nodes[2] / nodes[1])
        return (first - bend, bend)

    def results(self, nodes: tuple[float, ...]) -> tuple[Multiples, Multiples]:
        """Multiples of the result and of the comparison."""
        first = self._first(1.0)
        bend = first * (0.5 / nodes[1])
        second = (first - bend, bend)
        if len(nodes) == 2:
            return second, (first,)
        third = self._second(1.0) * (1 / nodes[2])
        return (first - third, 0.0, third), second
