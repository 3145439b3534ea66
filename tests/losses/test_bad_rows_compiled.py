"""`bad_rows="zero"` in a compiled loss: what is left out reaches no weight there either."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers.denoisers import EDM
from cmsolvers.losses.evaluation.recipe import Loss
from support.loss_cases import SmallNet, losses, model_for, options_of, teacher_for

X0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)
ROW = 5
SHORT = (("cd", "teacher"), ("ict", "target"), ("continuous_cd", "teacher"))
"""Those that are always compiled: it takes seconds."""


class Spoilt(nn.Module):
    """A network whose output for one sample is not a number."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *times: Tensor, **extra: Any) -> Tensor:
        made: Tensor = self.net(x, *times, **extra)
        bad = (torch.arange(len(made)) == ROW).reshape(-1, *[1] * (made.ndim - 1))
        return torch.where(bad, math.nan, made)


def cases() -> list[Any]:
    found = []
    for recipe in losses():
        for which in ("teacher", "target"):
            if which == "target" or recipe.recipe.teacher != "none":
                name = recipe.__name__
                marks = () if (name, which) in SHORT else pytest.mark.slow
                found.append(pytest.param(recipe, which, marks=marks, id=f"{name}-{which}"))
    return found


def outcome(recipe: Loss, which: str, backend: str | None, **more: Any) -> tuple[Tensor, ...]:
    """The loss, the number of bad samples, and the gradients."""
    about = recipe.recipe
    model = model_for(about).double()
    given: dict[str, Any] = {**options_of(about, X0)}
    if about.teacher == "required":
        given["teacher"] = teacher_for(about).double()
    if which == "teacher":
        given.pop("noise", None)  # reflow takes one or the other
    given |= {"key": 0, "step": 3, "bad_rows": "zero", **more}
    spoilt = (
        EDM(SmallNet(1, seed=1)).double().eval() if which == "teacher" else copy.deepcopy(model)
    )
    spoilt.net = Spoilt(spoilt.net)
    given[which] = spoilt

    def run() -> tuple[Tensor, Tensor]:
        found = recipe(model, X0, **given)
        return found.loss, found.diagnostics.get("bad_rows", torch.zeros(()))

    if backend is not None:
        torch._dynamo.reset()
        run = torch.compile(run, fullgraph=True, backend=backend)
    value, count = run()
    value.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return value.detach(), count, *grads


@pytest.mark.parametrize(("recipe", "which"), cases())
def test_a_bad_row_of_teacher_or_target_reaches_no_weight(recipe: Loss, which: str) -> None:
    wanted = outcome(recipe, which, None)
    found = outcome(recipe, which, "aot_eager")
    assert all(bool(part.isfinite().all()) for part in found)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    if recipe.recipe.teacher == "required" and which == "teacher":
        assert int(found[1]) == 1


def test_kept_it_reaches_every_weight() -> None:
    """The control."""
    (recipe,) = (r for r in losses() if r.__name__ == "cd")
    kept = outcome(recipe, "teacher", "eager", bad_rows="keep")
    assert all(bool(grad.isnan().any()) for grad in kept[2:])
