"""A small model, and a teacher where one is needed, for every loss of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction
from cmsolvers.denoisers import EDM, from_flow
from cmsolvers.denoisers.flow_maps import AverageVelocity, TrajectoryFunction, TrigFlowMap
from cmsolvers.losses import recipes
from cmsolvers.losses.evaluation.recipe import Loss, Recipe
from cmsolvers.losses.times.flow_times import DyadicPairs
from cmsolvers.losses.times.truncated_times import TruncatedPairs

TRUNCATED = TruncatedPairs(start=0.5)
OPTIONS: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "lcm": lambda x0: {"guidance": None},
    "reflow": lambda x0: {"noise": torch.full_like(x0, 0.5)},
    # All samples are of one kind then, wherever they stand in a batch.
    "shortcut": lambda x0: {"share": 1.0, "times": DyadicPairs(share=1.0)},
    "tcm": lambda x0: {"start": 0.5, "times": TRUNCATED},
}
"""Options that a loss cannot do without, for data [B, ...]."""


def options_of(recipe: Recipe, x0: Tensor) -> dict[str, Any]:
    """Options that a loss cannot do without; none for most."""
    return OPTIONS[recipe.name](x0) if recipe.name in OPTIONS else {}


class SmallNet(nn.Module):
    """An MLP of x, its times and an optional label; dropout on request."""

    def __init__(self, times: int = 1, size: int = 3, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(size + times, 24)
            self.last = nn.Linear(24, size)
            self.labels = nn.Embedding(5, 24)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, *times: Tensor, label: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        seen = torch.cat([flat, *[t.to(x.dtype).reshape(-1, 1) for t in times]], dim=1)
        h = torch.tanh(self.first(seen))
        if label is not None:
            h = h + self.labels(label)
        made: Tensor = self.last(self.drop(h))
        return made.reshape(x.shape)


def model_for(
    recipe: Recipe,
    kind: type[SmallNet] = SmallNet,
    around: Callable[[nn.Module], nn.Module] = lambda net: net,
    **options: Any,
) -> Any:
    """A fresh model of the kind that a loss trains, around a network of a kind of `SmallNet`.

    `around` wraps the network before the model does.
    """
    trig = recipe.coordinates == "trigflow"
    if recipe.model == "flow map":
        net = around(kind(2, **options))
        if trig:
            return TrigFlowMap(net, second="end")
        return TrajectoryFunction(net) if recipe.coordinates == "karras" else AverageVelocity(net)
    net = around(kind(1, **options))
    if trig:
        return TrigFlowMap(net)
    if recipe.model == "consistency":
        return ConsistencyFunction(net)
    return from_flow(net) if recipe.coordinates == "flow" else EDM(net)


def teacher_for(recipe: Recipe, **options: Any) -> Any:
    """A teacher where one is needed, else None."""
    if recipe.teacher != "required":
        return None
    return EDM(SmallNet(1, seed=1, **options)).eval()


def losses() -> list[Loss]:
    """All of them, by name."""
    return [getattr(recipes, name) for name in sorted(recipes.__all__)]


def evaluated(recipe: Loss, x0: Tensor, **options: Any) -> Any:
    """One evaluation with a fresh model, or with that in the options."""
    about = recipe.recipe
    size = {"size": x0[0].numel()} if len(x0) else {}
    model = options.pop("model", None)
    if model is None:
        model = model_for(about, **size).to(x0.dtype)
    given = {"key": 0, "step": 3, "teacher": teacher_for(about, **size)}
    if given["teacher"] is not None:
        given["teacher"] = given["teacher"].to(x0.dtype)
    return recipe(model, x0, **{**given, **options_of(about, x0), **options})
