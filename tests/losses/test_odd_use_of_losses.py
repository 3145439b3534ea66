"""Uses of losses that nobody plans: bad teachers, networks that write to their input, threads."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers.losses import (
    DoublingPairs,
    SquareRootPairs,
    continuous_ct,
    ict,
    lsd,
    meanflow,
    reflow,
    sct,
)
from cmsolvers.losses.derivatives.total_derivative import total_derivative
from cmsolvers.losses.evaluation.recipe import Loss
from support.loss_cases import evaluated, losses, model_for, teacher_for

EVERY = pytest.mark.parametrize("recipe", losses(), ids=lambda r: r.__name__)
X0 = torch.linspace(-1, 1, 24).reshape(8, 3)


class Wrapped(nn.Module):
    """A network with something done to its input and output."""

    def __init__(self, net: Any, row: int | None = None, change: str = "") -> None:
        super().__init__()
        self.net, self.row, self.change = net, row, change

    def forward(self, x: Tensor, *times: Tensor, **extra: Any) -> Tensor:
        x = x.mul_(2.0) if self.change == "in place" else x * 2.0 if self.change else x
        made: Tensor = self.net(x, *times, **extra)
        if self.row is not None and len(made) > self.row:
            made = made.clone()
            made[self.row] = math.nan
        return made


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@EVERY
@pytest.mark.parametrize("which", ["teacher", "target"])
def test_a_bad_row_of_teacher_or_target_reaches_no_weight(recipe: Loss, which: str) -> None:
    """The gradient is that of the loss with the row left out, not 0 times NaN."""
    about = recipe.recipe
    if which == "teacher" and about.teacher != "required":
        pytest.skip("without a teacher")
    model = model_for(about)
    other = teacher_for(about) if which == "teacher" else copy.deepcopy(model)
    if not hasattr(other, "net"):
        pytest.skip("no network to spoil")
    evaluated(recipe, X0, model=model, **{which: other}).loss.backward()
    others = gradients(model)
    model.zero_grad()
    spoilt = copy.deepcopy(other)
    spoilt.net = Wrapped(spoilt.net, row=5)
    found = evaluated(recipe, X0, model=model, bad_rows="zero", **{which: spoilt})
    found.loss.backward()
    assert bool(gradients(model).isfinite().all())
    if int(found.diagnostics["bad_rows"]) == 0:  # it does not ask this network
        torch.testing.assert_close(gradients(model), others)
        return
    assert int(found.diagnostics["bad_rows"]) == 1
    mine = gradients(model)
    model.zero_grad()
    rows = evaluated(recipe, X0, model=model, reduction="none", **{which: other}).loss
    (rows[[0, 1, 2, 3, 4, 6, 7]].sum() / len(X0)).backward()
    if recipe.__name__ != "ctm":  # its target has a gradient by the state, in all rows
        torch.testing.assert_close(mine, gradients(model), rtol=1e-4, atol=1e-7)
    assert not torch.allclose(mine, others)


def test_a_bad_row_reaches_no_learned_weight() -> None:
    weight = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1))
    model = model_for(sct.recipe)
    target = copy.deepcopy(model)
    target.net = Wrapped(target.net, row=5)
    evaluated(sct, X0, model=model, target=target, weight=weight, bad_rows="zero").loss.backward()
    assert bool(gradients(weight).isfinite().all())
    assert bool(gradients(model).isfinite().all())


def test_a_bad_pair_of_reflow_is_left_out() -> None:
    model, z = model_for(reflow.recipe), torch.ones_like(X0)
    z[5] = math.inf
    given: dict[str, Any] = {"key": 0, "step": 0, "bad_rows": "zero"}
    found = reflow(model, X0, noise=z, **given)
    found.loss.backward()
    assert int(found.diagnostics["bad_rows"]) == 1 and float(found.per_sample[5]) == 0.0
    assert bool(gradients(model).isfinite().all())


@EVERY
def test_a_network_may_write_to_its_input(recipe: Loss) -> None:
    found = []
    for change in ("a copy", "in place"):
        model = model_for(recipe.recipe)
        model.net = Wrapped(model.net, change=change)
        for target in (None, copy.deepcopy(model)):
            given = {} if target is None else {"target": target}
            value = evaluated(recipe, X0, model=model, **given)
            with torch.inference_mode():
                again = evaluated(recipe, X0, model=model, **given)
            found.append((value.per_sample, again.per_sample))
        value.loss.backward()
    for right, wrong in zip(found[:2], found[2:], strict=True):
        for one, other in zip(right, wrong, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", [meanflow, sct, lsd, continuous_ct], ids=lambda r: r.__name__)
def test_inference_mode_keeps_the_derivative(recipe: Loss) -> None:
    model, given = model_for(recipe.recipe), {"levels": (0.9, 0.1)}
    with torch.no_grad():
        right = evaluated(recipe, X0, model=model, **given).per_sample
    with torch.inference_mode():
        found = evaluated(recipe, X0, model=model, **given).per_sample
    torch.testing.assert_close(found, right)


def test_a_derivative_in_inference_mode_is_not_zero() -> None:
    with torch.inference_mode():
        found = total_derivative(torch.sin, [X0], [1.0])
    torch.testing.assert_close(found.derivative, X0.cos())


@pytest.mark.parametrize("recipe", [lsd, continuous_ct], ids=["lsd", "continuous_ct"])
def test_threads_take_derivatives_one_after_the_other(recipe: Loss) -> None:
    model = model_for(recipe.recipe)
    right = evaluated(recipe, X0, model=model).per_sample
    found: list[Tensor] = []

    def work() -> None:
        found.extend(evaluated(recipe, X0, model=model).per_sample for _ in range(4))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    for one in found:
        torch.testing.assert_close(one, right)


@pytest.mark.parametrize("times", [DoublingPairs(1000), SquareRootPairs(1000), DoublingPairs()])
def test_distributions_are_pickled_and_copied(times: Any) -> None:
    model = model_for(ict.recipe)
    for other in (pickle.loads(pickle.dumps(times)), copy.deepcopy(times)):
        assert other == times
        one, two = (
            evaluated(ict, X0, model=model, times=each, step=700).levels[0]
            for each in (times, other)
        )
        assert torch.equal(one, two)
