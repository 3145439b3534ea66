"""What a network returns that is no tensor is named, in derivatives as in plain passes."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers.losses.evaluation.recipe import Loss
from support.loss_cases import SmallNet, evaluated, losses, model_for

X0 = torch.linspace(-1, 1, 12).reshape(4, 3)
DIFFERENTIATED = [r for r in losses() if "derivative" in inspect.signature(r).parameters]
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a tuple": (lambda y: (y,), TypeError, r"returned an object of type tuple: its \[0\] is one"),
    "an output": (lambda y: SimpleNamespace(sample=y), TypeError, r"its \.sample is one"),
    "none": (lambda y: None, TypeError, "returned None"),
    "integers": (lambda y: y.long(), TypeError, "returned torch.int64"),
    "another shape": (lambda y: y[:, :2], ValueError, r"of x, \[4, 3\]; it returned \[4, 2\]"),
}


class Wrong(nn.Module):
    """A network whose output is packed."""

    def __init__(self, net: nn.Module, packed: Any) -> None:
        super().__init__()
        self.net, self.packed = net, packed

    def forward(self, x: Tensor, *times: Tensor) -> Any:
        return self.packed(self.net(x, *times))


@pytest.mark.parametrize("derivative", ["jvp", "finite_difference"])
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("recipe", DIFFERENTIATED, ids=lambda r: r.__name__)
def test_the_model_is_named(recipe: Loss, kind: str, derivative: str) -> None:
    packed, error, text = WRONG[kind]
    model = model_for(recipe.recipe, SmallNet, lambda net: Wrong(net, packed))
    with pytest.raises(error, match=f"^model must return .*{text}"):
        evaluated(recipe, X0, model=model, derivative=derivative)


@pytest.mark.parametrize("recipe", DIFFERENTIATED, ids=lambda r: r.__name__)
def test_a_tensor_is_not_wrong(recipe: Loss) -> None:
    model = model_for(recipe.recipe, SmallNet, lambda net: Wrong(net, lambda y: y))
    assert bool(evaluated(recipe, X0, model=model).loss.isfinite())
