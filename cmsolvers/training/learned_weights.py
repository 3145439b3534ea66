"""A small network that learns the weight of a loss at each level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.training.networks import LevelEmbedding


class LearnedWeight(nn.Module):
    """w(t) or w(t, s), [B], 0 before training: losses are e^-w value + w.

    It is a submodule of the network that it is trained with, so that optimisers, averages and
    checkpoints hold it too.

    Args:
        levels: how many it is a function of, 1 or 2.
        width: of its embedding.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), appendix B.2.
    """

    def __init__(self, levels: int, width: int = 32) -> None:
        super().__init__()
        count = check.count("levels", levels, most=2)
        self.embeddings = nn.ModuleList(LevelEmbedding(width) for _ in range(count))
        self.last = nn.Linear(count * width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, *levels: Tensor) -> Tensor:
        """Levels [B] each -> [B]."""
        made = [embed(level) for embed, level in zip(self.embeddings, levels, strict=True)]
        result: Tensor = self.last(torch.cat(made, dim=1))[:, 0]
        return result
