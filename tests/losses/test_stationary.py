"""At the exact flow map every loss is stationary; a wrong one is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.recipe import Loss
from cmsolvers.losses.formulas.identities import eulerian
from cmsolvers.losses.formulas.weights import mean_square
from cmsolvers.losses.recipes.average_velocity import meanflow
from cmsolvers.losses.recipes.diffusion import dsm, flow_matching
from cmsolvers.losses.times.basic_times import LogitNormalPairs
from support.stationary import MOVES, STILL, exact_map, expected_gradient

CASES: list[tuple[Loss, str, dict[str, Any]]] = [
    (dsm, "denoiser", {}),
    (dsm, "flow", {}),
    (flow_matching, "flow", {}),
    (flow_matching, "average velocity", {}),
    (flow_matching, "trigflow pair", {}),
    (meanflow, "average velocity", {"p": 0.0}),
    (meanflow, "length", {"p": 0.0}),
    (meanflow, "trigflow pair", {"p": 0.0}),
]


@pytest.mark.parametrize(("recipe", "kind", "options"), CASES)
def test_the_exact_map_is_stationary(recipe: Loss, kind: str, options: dict[str, Any]) -> None:
    assert expected_gradient(recipe, exact_map(kind), **options).worst < STILL


@pytest.mark.parametrize("kind", ["denoiser", "average velocity"])
def test_a_wrong_map_is_not(kind: str) -> None:
    model = exact_map(kind)
    raw = model.net.raw
    model.net.raw = lambda x, t, s: 1.5 * raw(x, t, s)
    recipe = dsm if kind == "denoiser" else meanflow
    options = {} if kind == "denoiser" else {"p": 0.0}
    assert expected_gradient(recipe, model, **options).worst > MOVES


def test_a_wrong_tangent_is_not() -> None:
    @loss(
        identity="eulerian",
        source="none",
        times=LogitNormalPairs(),
        coordinates="flow",
        model="flow map",
    )
    def wrong(at: Evaluation) -> torch.Tensor:
        """The derivative along -v."""
        (x,) = at.states(at.t, velocity=True)
        assert x.velocity is not None
        right = eulerian(at, x, at.s, x.velocity)
        return mean_square(right + eulerian(at, x, at.s, -x.velocity) * 0.5)

    assert expected_gradient(wrong, exact_map("average velocity")).worst > MOVES
