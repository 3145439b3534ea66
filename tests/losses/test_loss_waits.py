"""No loss waits for a device: nothing is read there, nothing is copied there from the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers import losses as all_losses
from cmsolvers.denoisers import EDM
from cmsolvers.losses.derivatives import derivative_check
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.evaluation.recipe import Loss
from cmsolvers.losses.formulas.tangents import Clamped, Normalised
from cmsolvers.losses.formulas.velocity_guidance import Guidance, GuidanceInputs, MixedGuidance
from cmsolvers.losses.recipes.average_velocity import MEANFLOW
from cmsolvers.losses.recipes.terminal_velocity import ScaledVelocity
from cmsolvers.losses.times.consistency_times import DoublingPairs, ECTPairs, SquareRootPairs
from cmsolvers.losses.times.flow_times import AnglePairs
from support.loss_cases import SmallNet, evaluated, losses, model_for, teacher_for
from support.waits import PRETENDED, pretended_device, waits_of_a_device

EVERY = pytest.mark.parametrize("recipe", losses(), ids=lambda r: r.__name__)
LABEL = {"label": torch.zeros(8, dtype=torch.int64, device=PRETENDED)}
NULL = {"label": torch.zeros(8, dtype=torch.int64, device=PRETENDED)}
DROP = LabelDropout("label", 0.5, 0)


@pytest.fixture(autouse=True)
def looks(monkeypatch: Any) -> Any:
    """Sets in which calls derivatives are looked at; in none, for speed."""

    def calls(*numbers: int) -> None:
        monkeypatch.setattr(derivative_check, "CALLS", numbers)

    calls()
    return calls


def found_in(recipe: Loss, kind: type[SmallNet] = SmallNet, **options: Any) -> list[str]:
    """What waits in the second of two evaluations and its gradient; tables are made in the first.

    The function under "last" makes options of the model.
    """
    x0 = torch.empty(8, 3, device=PRETENDED)
    model = model_for(recipe.recipe, kind=kind).to(PRETENDED)
    teacher = teacher_for(recipe.recipe)
    given = {"model": model, "teacher": None if teacher is None else teacher.to(PRETENDED)}
    if "last" in options:
        options |= options.pop("last")(model)
    with pretended_device():
        evaluated(recipe, x0, **{**given, **options})
    with waits_of_a_device() as found:
        evaluated(recipe, x0, **{**given, **options}).loss.backward()
    return found


@EVERY
@pytest.mark.parametrize("given", ["number", "tensor"])
def test_no_loss_waits(recipe: Loss, given: str, looks: Any) -> None:
    step = torch.ones(1, dtype=torch.int64, device=PRETENDED)
    if given == "number":
        step = 3
        looks(2)
    assert found_in(recipe, step=step) == []


@EVERY
@pytest.mark.parametrize("levels", [(0.7, 0.0), "tensors"], ids=str)
def test_nor_with_levels_and_labels(recipe: Loss, levels: Any) -> None:
    if levels == "tensors":
        levels = tuple(torch.empty(8, dtype=torch.float64, device=PRETENDED) for _ in range(2))
    options = {"levels": levels, "extra_args": LABEL, "label_dropout": DROP, "bad_rows": "zero"}
    assert found_in(recipe, **options) == []


class Guided(SmallNet):
    """A network that also reads what guidance gives it."""

    def forward(self, x: Tensor, *times: Tensor, label: Any = None, **given: Tensor) -> Tensor:
        return super().forward(x, *times, label=label) * sum(given.values()).reshape(-1, 1).to(x)


def step() -> dict[str, Any]:
    return {"step": torch.ones(1, dtype=torch.int64, device=PRETENDED)}


def guided(guidance: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"guidance": guidance, "extra_args": LABEL, "label_dropout": DROP}


def teacher() -> EDM:
    return EDM(SmallNet(1)).eval().to(PRETENDED)


MORE: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    ("ict", lambda: {"times": DoublingPairs(100), **step()}),
    ("ct", lambda: {"times": SquareRootPairs(100), **step()}),
    ("ect", lambda: {"times": ECTPairs(q=2.0, stage_steps=10), **step()}),
    ("ect", lambda: {"teacher": teacher()}),
    ("ctm", lambda: {"teacher": teacher(), "steps": 2, "compared_at": 0.1}),
    ("ctm", lambda: {"last": lambda model: {"balance": model.net.last.weight}}),
    ("cd", lambda: {"solver": "euler", "weight": all_losses.inverse_gap}),
    (
        "lcm",
        lambda: {"guidance": (3.0, 15.0), "null_args": NULL, "kind": Guided, "teacher_args": LABEL},
    ),
    ("mcd", lambda: {"segments": (1.0, 0.5, 0.0)}),
    ("reflow", lambda: {"teacher": teacher(), "noise": None, "steps": 2}),
    ("progressive_distillation", lambda: {"times": AnglePairs(8, last=1, total=100), **step()}),
    ("psd", lambda: {"between": "midpoint", "stop_gradient": "none"}),
    ("lsd", lambda: {"stop_gradient": "none", "derivative": "finite_difference"}),
    ("sct", lambda: {"derivative": "discrete", "tangent": Clamped(1.0), **step()}),
    ("rcm", lambda: {"tangent": Normalised(nan_rows="zero"), **step()}),
    ("scd", lambda: {"derivative": "finite_difference", "tangent": Normalised("rms")}),
    ("meanflow", guided(Guidance("label", 0, 2.0, 0.5, (0.1, 0.8)))),
    ("meanflow", lambda: MEANFLOW["cifar"]),
    ("soflow", guided(MixedGuidance("label", 0, scale=2.0, mix=0.5, decay_from=0.5))),
    ("soflow", lambda: {"total": 100, **step()}),
    ("alpha_flow", lambda: {"total": 100, "clip": 4.0, **step()}),
    ("imf", lambda: {**guided(GuidanceInputs("label", 0))(), "kind": Guided}),
    ("tvm", lambda: {"guidance": ScaledVelocity(2.0, NULL), "extra_args": LABEL}),
]


@pytest.mark.parametrize(
    ("name", "options"), MORE, ids=[f"{name} {k}" for k, (name, _) in enumerate(MORE)]
)
def test_nor_with_options(name: str, options: Callable[[], dict[str, Any]]) -> None:
    assert found_in(getattr(all_losses, name), **options()) == []


# --- controls ------------------------------------------------------------------------------------

WAITING: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t * torch.tensor(2.0, device=t.device),
    "as_tensor": lambda t: t * torch.as_tensor([2.0], device=t.device),
    "_to_copy": lambda t: t * torch.ones(8).to(t.device),
    "copy_": lambda t: torch.empty_like(t).copy_(torch.ones(8)),
}


@pytest.mark.parametrize("name", WAITING)
def test_copies_are_found(name: str) -> None:
    def weight(t: Tensor, s: Tensor) -> Tensor:
        WAITING[name](t)
        return torch.ones_like(t)

    found = found_in(all_losses.ict, weight=weight)
    assert found and all(one.startswith(name) for one in found), found


READING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda t: t[0].item(),
    "bool": lambda t: bool((t > 0).all()),
    "mask": lambda t: t[t > 0],
    "list": lambda t: t.tolist(),
    "cpu": lambda t: t.cpu(),
}


@pytest.mark.parametrize("name", READING)
def test_reads_are_errors(name: str) -> None:
    def weight(t: Tensor, s: Tensor) -> Tensor:
        READING[name](t)
        return torch.ones_like(t)

    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        found_in(all_losses.ict, weight=weight)
