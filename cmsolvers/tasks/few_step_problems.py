"""The problems on which losses of few-step models are measured; sigma_data is 0.5 in all."""

from __future__ import annotations

import math

import torch

from cmsolvers import noise
from cmsolvers.tasks.exact_problems import ExactProblem


def gaussian() -> ExactProblem:
    """A Gaussian in 8-D whose deviations go from 0.1 to about 1; sigma_data is 0.5."""
    stds = torch.logspace(-1.0, 0.0, 8, dtype=torch.float64)
    means = 0.3 * torch.tensor([[1.0, -1.0]], dtype=torch.float64).repeat(1, 4)
    stds = stds * (0.5 / stds.square().mean().sqrt())
    return ExactProblem("gaussian", means, stds[None], torch.ones(1, dtype=torch.float64))


def ring() -> ExactProblem:
    """Eight equal modes of deviation 0.08 on a circle in 2-D; sigma_data is 0.5."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    radius = math.sqrt(2.0 * (0.5**2 - 0.08**2))
    means = radius * torch.stack([angles.cos(), angles.sin()], 1)
    return ExactProblem(
        "ring",
        means,
        torch.full((8, 2), 0.08, dtype=torch.float64),
        torch.ones(8, dtype=torch.float64),
    )


def clusters() -> ExactProblem:
    """Five components of unequal weights and deviations in 16-D; sigma_data is 0.5."""
    weights = torch.tensor([0.35, 0.25, 0.2, 0.12, 0.08], dtype=torch.float64)
    stds = torch.tensor([0.3, 0.1, 0.2, 0.15, 0.25], dtype=torch.float64)
    means = noise.normal((5, 16), 5, dtype=torch.float64)
    means = means - weights @ means
    between = float((weights @ means.square()).mean())
    within = float(weights @ stds.square())
    means = means * math.sqrt((0.5**2 - within) / between)
    return ExactProblem("clusters", means, stds[:, None].expand(5, 16), weights)


PROBLEMS = {"gaussian": gaussian, "ring": ring, "clusters": clusters}
"""What the benchmark runs on, by name."""
