"""Every loss on CUDA: values of the CPU, no wait for the device, whole steps as one graph.

`CMSOLVERS_REQUIRE_CUDA=1` turns the skip of this file into a failure (tools/gpu_run.py sets it).
"""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers import losses as all_losses
from cmsolvers import noise, ops
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.evaluation.recipe import Loss
from cmsolvers.training import capture_step
from support.loss_cases import evaluated, losses, model_for, teacher_for

HAS_CUDA = torch.cuda.is_available() and bool(ops.build_info()["cuda"])
REQUIRED = os.environ.get("CMSOLVERS_REQUIRE_CUDA", "0") not in ("", "0")
DEVICE = "cuda"

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not HAS_CUDA and not REQUIRED, reason="needs a GPU and the CUDA part of the extension"
    ),
]

EVERY = pytest.mark.parametrize("recipe", losses(), ids=lambda r: r.__name__)
X0 = noise.normal((8, 3), seed=1, dtype=torch.float64)


class Case:
    """A loss with its networks and data on a device."""

    def __init__(self, recipe: Loss, device: str, dtype: torch.dtype = torch.float64) -> None:
        self.recipe, self.x0 = recipe, X0.to(device, dtype)
        self.model = model_for(recipe.recipe).to(device, dtype)
        teacher = teacher_for(recipe.recipe)
        self.teacher = None if teacher is None else teacher.to(device, dtype)
        self.label = {"label": torch.arange(8, device=device) % 4 + 1}

    def __call__(self, step: "int | Tensor" = 3) -> Any:
        found = evaluated(
            self.recipe,
            self.x0,
            model=self.model,
            teacher=self.teacher,
            step=step,
            extra_args=self.label,
            label_dropout=LabelDropout("label", 0.5, 0),
        )
        self.model.zero_grad()
        found.loss.backward()
        return found

    def gradients(self) -> list[Tensor]:
        return [p.grad.cpu() for p in self.model.parameters()]


@EVERY
def test_values_and_gradients_are_those_of_the_cpu(recipe: Loss) -> None:
    here, there = Case(recipe, "cpu"), Case(recipe, DEVICE)
    wanted, found = here(), there()
    for a, b in zip(found.levels, wanted.levels, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.per_sample.cpu(), wanted.per_sample, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(there.gradients(), here.gradients(), rtol=1e-6, atol=1e-9)
    other = there(step=4)
    assert not torch.allclose(other.per_sample.cpu(), wanted.per_sample, rtol=1e-3)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_never_waits(recipe: Loss, dtype: torch.dtype) -> None:
    case = Case(recipe, DEVICE, dtype)
    steps = [3, torch.tensor([3], device=DEVICE)]
    for step in steps:  # tables are made, and the first look is taken
        case(step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in steps:
            case(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_wait_is_an_error() -> None:
    """The control."""
    case = Case(all_losses.ict, DEVICE)
    loss = case().loss
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            float(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(name: str, graph: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The losses and the final weights of 5 steps, of which the last 3 may be replays."""
    recipe: Loss = getattr(all_losses, name)
    model = model_for(recipe.recipe, dropout=0.1).to(DEVICE)
    rate = torch.tensor(1e-2, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, capturable=True)
    data = X0.float().to(DEVICE)

    def loss(x0: Tensor, step: Tensor) -> Tensor:
        return recipe(model, x0, key=7, step=step).loss

    captured = capture_step(loss, model, optimizer, data, warmup=2, graph=graph)
    torch.manual_seed(0)
    values = [captured(data, k).cpu() for k in range(5)]
    assert graph is (captured.graph is not None)
    return values, [p.detach().cpu() for p in model.parameters()]


@pytest.mark.parametrize("name", ["ict", "ect", "meanflow", "sct"])
def test_a_captured_step_has_the_bits_of_the_step(name: str) -> None:
    values, weights = trained(name, graph=True)
    plain_values, plain_weights = trained(name, graph=False)
    assert len({float(value) for value in values}) == 5  # each step drew anew
    for a, b in zip([*values, *weights], [*plain_values, *plain_weights], strict=True):
        assert torch.equal(a, b)
