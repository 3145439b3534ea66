"""Two heads at an exact map, and adaptive weights, which move the minimum of skewed data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers.denoisers.flow_maps import AverageVelocity
from cmsolvers.denoisers.velocity_heads import VelocityHeads
from cmsolvers.losses.recipes.average_velocity import imf, meanflow
from cmsolvers.losses.times.basic_times import LogitNormalPairs
from support.stationary import (
    MOVES,
    STILL,
    exact_map,
    expected_gradient,
)

APART = LogitNormalPairs(equal=0.0)


class TwoHeads(torch.nn.Module):
    """u and v of an exact map, as the two heads of one network; v moved by `off`."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.net = exact_map("average velocity").net
        self.off = off

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x, t, s), self.net(x, t, t) + self.off

    @property
    def theta(self) -> torch.nn.Parameter:
        return self.net.theta


class Held(VelocityHeads):
    """Whose directions are where `expected_gradient` looks for them."""

    def get_parameter(self, target: str) -> torch.nn.Parameter:
        found: torch.nn.Parameter = self.net.theta
        return found


def test_two_heads_are_stationary_with_the_exact_tangent_alone() -> None:
    options: dict[str, Any] = {"p": 0.0, "batches": 12, "times": APART}
    assert expected_gradient(imf, Held(TwoHeads()), **options).worst < STILL
    assert expected_gradient(imf, Held(TwoHeads(off=0.5)), **options).worst > MOVES


# --- adaptive weights ----------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.1, 0.9], dtype=torch.float64)
POINTS = torch.tensor([-2.0, 0.5], dtype=torch.float64)


class MixtureVelocity(torch.nn.Module):
    """The exact velocity of data at two points on a line, plus theta."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        t = t[:, None]
        place = WEIGHTS.log() - (x - (1 - t) * POINTS) ** 2 / (2 * t * t)
        clean = (torch.softmax(place, 1) * POINTS).sum(1, keepdim=True)
        return (x - clean) / t + self.theta


def drift(recipe: Any, p: float, theta: float = 0.0) -> float:
    """E dloss/dtheta over its standard error, on the diagonal at t = 0.7."""
    model, found = AverageVelocity(MixtureVelocity()), []
    torch.nn.init.constant_(model.net.theta, theta)
    for step in range(12):
        generator = torch.Generator().manual_seed(step)
        pick = torch.multinomial(WEIGHTS, 4000, replacement=True, generator=generator)
        value = recipe(model, POINTS[pick][:, None], key=3, step=step, levels=0.7, p=p, eps=0.01)
        found.append(torch.autograd.grad(value.loss, model.net.theta)[0])
    rows = torch.stack(found)
    return float(rows.mean() / (rows.std() / len(rows) ** 0.5))


@pytest.mark.parametrize("recipe", [meanflow, imf])
def test_adaptive_weights_move_the_minimum_of_skewed_data(recipe: Any) -> None:
    """With p = 0 the exact velocity is stationary; with p > 0 the weight knows the pair's v."""
    assert abs(drift(recipe, 0.0)) < STILL
    # Solutions found by reweighted means of 10^6 samples of v given x, whose deviation is 1.006.
    for p, solution in ((0.75, -0.1895), (1.0, -0.1738)):
        assert abs(drift(recipe, p)) > MOVES
        assert abs(drift(recipe, p, solution)) < STILL


def test_adaptive_weights_do_no_harm_to_gaussian_data() -> None:
    """There v given x is symmetric about its mean, and so is what the weight does."""
    for p in (0.75, 1.0):
        found = expected_gradient(meanflow, exact_map("average velocity"), batches=12, p=p)
        assert found.worst < STILL
