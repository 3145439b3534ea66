"""Every loss compiles whole: values and gradients of eager, new draws from a step tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.losses.evaluation.recipe import Loss
from support.loss_cases import losses, model_for, options_of, teacher_for

X0 = noise.normal((8, 3), seed=1, dtype=torch.float64)
SHORT = ("ict", "meanflow", "lsd", "sct")
"""The losses that are always compiled: it takes seconds."""


def outcomes(recipe: Loss, backend: str | None) -> list[Tensor]:
    """Losses and gradients of two steps, whose number is a tensor."""
    model = model_for(recipe.recipe).double()
    teacher = teacher_for(recipe.recipe)
    teacher = None if teacher is None else teacher.double()
    options = options_of(recipe.recipe, X0)

    def loss(step: Tensor) -> Tensor:
        return recipe(model, X0, key=0, step=step, teacher=teacher, **options).loss

    run = loss
    if backend is not None:
        torch._dynamo.reset()
        run = torch.compile(loss, fullgraph=True, backend=backend)
    found = []
    for step in (3, 4):
        model.zero_grad()
        value = run(torch.tensor([step]))
        value.backward()
        found += [value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    return found


def check(recipe: Loss, backend: str) -> None:
    wanted = outcomes(recipe, None)
    torch.testing.assert_close(outcomes(recipe, backend), wanted, rtol=1e-9, atol=1e-11)
    half = len(wanted) // 2
    assert not torch.isclose(wanted[0], wanted[half], rtol=1e-3)  # the control: another step


@pytest.mark.parametrize(
    "recipe", [r for r in losses() if r.__name__ in SHORT], ids=lambda r: r.__name__
)
def test_compiles_whole(recipe: Loss) -> None:
    check(recipe, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", losses(), ids=lambda r: r.__name__)
def test_compiles_whole_with_gradients_of_autograd_compiled_too(recipe: Loss) -> None:
    check(recipe, "aot_eager")
