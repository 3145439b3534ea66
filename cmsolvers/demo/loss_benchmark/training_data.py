"""The data of a training."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from cmsolvers import noise
from cmsolvers.tasks.exact_problems import ExactProblem

_BLOCK = 64  # batches that are drawn at once
_PAIRS = 8192


class Batches:
    """New samples for every step; or pairs of noise and data, which are used again and again.

    Args:
        problem: whose samples they are.
        seed: of the samples.
        size: of a batch.
        pairs: whether they are pairs.
    """

    def __init__(self, problem: ExactProblem, seed: int, size: int, pairs: bool) -> None:
        self.problem, self.seed, self.size, self.pairs = problem, seed, size, pairs
        self._drawn: tuple[int, Tensor] | None = None

    def at(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """x0 [size, d] of a step, and further arguments of the loss: `noise` of pairs."""
        if self.pairs:
            return self._pairs(step)
        block, place = divmod(step, _BLOCK)
        if self._drawn is None or self._drawn[0] != block:
            x0 = self.problem.sample(_BLOCK * self.size, self.seed, draw=block).float()
            self._drawn = block, x0
        return self._drawn[1][place * self.size : (place + 1) * self.size], {}

    def _pairs(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        z, x0 = exact_pairs(self.problem)
        order = noise.uniform((self.size,), self.seed, stream=noise.OTHER, draw=step)
        chosen = (order * len(z)).long().clamp_(max=len(z) - 1)
        return x0[chosen], {"noise": z[chosen]}


@lru_cache(maxsize=4)
def exact_pairs(problem: ExactProblem) -> tuple[Tensor, Tensor]:
    """(z, x0): unit normals and where the probability-flow ODE takes them, float32 [n, d] each."""
    z = noise.normal((_PAIRS, problem.size), 7, stream=noise.LATENT)
    return z, problem.flow_map(z, 1.0, 0.0, "flow", tolerance=1e-7)
