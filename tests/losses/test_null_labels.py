"""The null label of label dropout and of guidance: held by the dtype of the labels, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers.losses import GuidanceInputs, LabelDropout
from cmsolvers.losses.evaluation.labels import null_label
from cmsolvers.losses.formulas.velocity_guidance import Guidance, unlabelled

LABELS = torch.arange(4)
UNIFORM = torch.tensor([0.1, 0.9, 0.2, 0.8], dtype=torch.float64)


def dropped(null: Any, label: Tensor) -> Tensor:
    extra: dict[str, object] = {"y": label}
    LabelDropout("y", 0.5, null).dropped(extra, UNIFORM)
    found = extra["y"]
    assert isinstance(found, Tensor)
    return found


GOOD: list[tuple[Any, Tensor, list[Any]]] = [
    (10, LABELS, [10, 1, 10, 3]),
    (10.0, LABELS, [10, 1, 10, 3]),
    (torch.tensor(10), LABELS.int(), [10, 1, 10, 3]),
    (torch.tensor(10.0), LABELS, [10, 1, 10, 3]),
    (255, LABELS.to(torch.uint8), [255, 1, 255, 3]),
    (False, LABELS > -1, [False, True, False, True]),
    (0.5, LABELS.double(), [0.5, 1.0, 0.5, 3.0]),
    (torch.tensor([7.0, 8.0]), LABELS.float()[:, None].expand(4, 2), [[7, 8], [1, 1]]),
    (2**53 + 1, LABELS, [2**53 + 1, 1, 2**53 + 1, 3]),
]
BAD: list[tuple[Any, Tensor, str]] = [
    (10.7, LABELS, "null must be a label that torch.int64 holds, .* got 10.7"),
    (torch.tensor(10.7, dtype=torch.float64), LABELS, "torch.int64 holds, .* got 10.7"),
    (300, LABELS.to(torch.uint8), "torch.uint8 holds, .* got 300"),
    (torch.tensor(300), LABELS.to(torch.uint8), "torch.uint8 holds, .* got 300"),
    (-1, LABELS.to(torch.uint8), "torch.uint8 holds, .* got -1"),
    (2**40, LABELS.int(), "torch.int32 holds, .* got 1099511627776"),
    (2, LABELS > 1, "torch.bool holds, .* got 2"),
    (1e6, LABELS.half(), "torch.float16 holds, .* got 1000000.0"),
    (torch.tensor([10]), LABELS, r"the shape of one label, \[\]; got \[1\]"),
    (torch.zeros(4), LABELS.float(), r"the shape of one label, \[\]; got \[4\]"),
    (torch.zeros(2, 2), torch.zeros(4, 2), r"one label, \[2\]; got \[2, 2\]"),
    (torch.zeros(1, 2), torch.zeros(4, 2), r"\[2\]; got \[1, 2\]: null\[0\] has it"),
    (torch.zeros(1), torch.zeros(4, 2), r"one label, \[2\]; got \[1\]"),
]


@pytest.mark.parametrize(("null", "label", "right"), GOOD)
def test_a_null_label_that_is_held(null: Any, label: Tensor, right: list[Any]) -> None:
    found = dropped(null, label)
    assert found.dtype is label.dtype and found.shape == label.shape
    assert found[: len(right)].tolist() == right
    assert unlabelled({"y": label}, "y", null)["y"].unique(dim=0).shape[0] == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("null", "label", "text"), BAD)
def test_a_null_label_that_is_not_held(null: Any, label: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=f"label_dropout: .*{text}"):
        dropped(null, label)
    with pytest.raises(ValueError, match=f"guidance: .*{text}"):
        unlabelled({"y": label}, "y", null)


@pytest.mark.parametrize(("null", "error"), [("none", TypeError), (None, TypeError)])
def test_a_null_label_that_is_no_label(null: Any, error: type[Exception]) -> None:
    for made in (
        lambda: LabelDropout("y", 0.1, null),
        lambda: Guidance("y", null),
        lambda: GuidanceInputs("y", null),
    ):
        with pytest.raises(error, match="null must be a number"):
            made()


def test_a_learned_null_label_has_a_gradient() -> None:
    null = torch.zeros(2, requires_grad=True)
    dropped(null, torch.ones(4, 2)).sum().backward()
    assert null.grad is not None and null.grad.tolist() == [2.0, 2.0]


def test_null_labels_compile() -> None:
    made = torch.compile(lambda label: null_label("label_dropout", 10, label), fullgraph=True)
    assert int(made(LABELS)) == 10
