"""What every loss does with bad input: one clear error each, or the documented behaviour."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from cmsolvers.denoisers.flow_maps import AverageVelocity
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.evaluation.recipe import Loss
from support.loss_cases import evaluated, losses, model_for

EVERY = pytest.mark.parametrize("recipe", losses(), ids=lambda r: r.__name__)
X0 = torch.linspace(-1, 1, 24).reshape(8, 3)

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"step": -1}, ValueError, "step must be an int in"),
    ({"step": 1.5}, ValueError, "step must be an int in"),
    ({"key": -1}, ValueError, "seed"),
    ({"reduction": "avg"}, ValueError, 'reduction must be "mean", "sum" or "none"; got \'avg\''),
    ({"bad_rows": "drop"}, ValueError, "bad_rows must be"),
    ({"levels": math.nan}, ValueError, "levels"),
    ({"levels": -0.5}, ValueError, "levels"),
    ({"levels": (0.2, 0.7)}, ValueError, r"levels must be \(t, s\)"),
    ({"levels": torch.ones(3)}, ValueError, "levels"),
    ({"levels": (0.9, 0.5, 0.1)}, ValueError, r"levels must be t or \(t, s\); got 3 of them"),
    ({"extra_args": [1]}, TypeError, "extra_args"),
    ({"nonsense": 1}, TypeError, "has no argument 'nonsense'"),
    ({"label_dropout": LabelDropout("label", 0.5, 0)}, ValueError, r"extra_args\['label'\]"),
    ({"model": 3}, TypeError, "model must be"),
]


@EVERY
@pytest.mark.parametrize(
    ("given", "error", "text"), BAD, ids=[f"{next(iter(row[0]))} {k}" for k, row in enumerate(BAD)]
)
def test_bad_arguments(
    recipe: Loss, given: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        evaluated(recipe, X0, **given)


@EVERY
@pytest.mark.parametrize("x0", [torch.ones(4, 3, dtype=torch.int64), torch.tensor(1.0), "x"])
def test_bad_data(recipe: Loss, x0: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="x0 must"):
        recipe(model_for(recipe.recipe), x0, key=0, step=0)


@EVERY
def test_levels_outside_of_the_path(recipe: Loss) -> None:
    if recipe.recipe.coordinates == "karras":
        pytest.skip("Karras levels have no end")
    with pytest.raises(ValueError, match=r"levels must lie in \[0, "):
        evaluated(recipe, X0, levels=(1.7, 0.5))


@EVERY
def test_teachers(recipe: Loss) -> None:
    about = recipe.recipe
    if about.teacher == "required":
        with pytest.raises(ValueError, match="teacher must be given"):
            evaluated(recipe, X0, teacher=None)
    if about.teacher == "none":
        with pytest.raises(ValueError, match="teacher must be left out"):
            evaluated(recipe, X0, teacher=lambda x, s: x)
        return
    if about.any_mode:
        return
    noisy = nn.Sequential(nn.Dropout(0.5)).train()
    with pytest.raises(ValueError, match="teacher must be in evaluation mode"):
        evaluated(recipe, X0, teacher=noisy)


@EVERY
def test_nan_in_one_sample(recipe: Loss) -> None:
    x0 = X0.clone()
    x0[5, 1] = math.nan
    with pytest.raises(FloatingPointError, match="sample 5"):
        evaluated(recipe, x0)
    whole = evaluated(recipe, X0, reduction="none")
    kept = evaluated(recipe, x0, reduction="none", bad_rows="keep")
    others = [0, 1, 2, 3, 4, 6, 7]
    assert kept.per_sample[5].isnan()
    torch.testing.assert_close(kept.per_sample[others], whole.per_sample[others])


@EVERY
def test_nan_left_out_and_counted(recipe: Loss) -> None:
    x0 = X0.clone()
    x0[5, 1] = math.inf
    model = model_for(recipe.recipe)
    found = evaluated(recipe, x0, bad_rows="zero", model=model)
    assert int(found.diagnostics["bad_rows"]) == 1
    assert float(found.per_sample[5]) == 0.0
    found.loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


@EVERY
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(recipe: Loss, batch: int) -> None:
    found = evaluated(recipe, X0[:batch])
    assert found.per_sample.shape == (batch,)
    if batch:
        assert bool(found.loss.isfinite())
        found.loss.backward()


@EVERY
def test_one_sample_is_what_it_is_in_a_batch(recipe: Loss) -> None:
    """Noise, levels and dropped labels of sample i do not depend on the batch."""
    whole = evaluated(recipe, X0.double(), reduction="none")
    part = evaluated(recipe, X0[:3].double(), reduction="none")
    assert torch.equal(part.levels[0], whole.levels[0][:3])
    assert torch.equal(part.levels[1], whole.levels[1][:3])


def test_a_network_of_one_time_is_refused() -> None:
    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    with pytest.raises(TypeError, match="net must take two times"):
        AverageVelocity(net)


@EVERY
def test_half_precision_data(recipe: Loss) -> None:
    found = evaluated(recipe, X0.bfloat16())
    assert found.loss.dtype is torch.float32
    assert bool(found.loss.isfinite())


@EVERY
def test_labels_are_dropped_for_all_passes(recipe: Loss) -> None:
    label = torch.tensor([1, 2, 3, 4, 1, 2, 3, 4])
    options = {"extra_args": {"label": label}, "reduction": "none"}
    drop = LabelDropout("label", 0.5, 0)
    found = evaluated(recipe, X0, label_dropout=drop, **options)
    dropped = int(found.diagnostics["labels_dropped"])
    assert 0 < dropped < 8
    kept = evaluated(recipe, X0, **options)
    differs = found.per_sample != kept.per_sample
    assert int(differs.sum()) == dropped
