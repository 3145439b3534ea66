"""Dropped labels, for training with classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.engine.mistakes.glances import can_be_read


@dataclass(frozen=True, eq=False)
class LabelDropout:
    """Replaces a sample's label by the null label with a probability: `label_dropout=` of losses.

    Args:
        name: of the label in `extra_args`, a tensor [B, ...].
        probability: in [0, 1]; 0.1 is usual.
        null: the label that says nothing: a number, or a tensor of the shape of one label, which
            the dtype of the labels holds.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range.

    Source: Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022), section 3.2.
    """

    name: str
    probability: float
    null: int | float | Tensor

    def __post_init__(self) -> None:
        check.within("probability", self.probability, 0.0, 1.0)
        check_null(self.null)

    def dropped(self, extra: dict[str, object], uniform: Tensor) -> Tensor:
        """Put the null label into `extra` where uniform < probability; which samples, bool [B].

        Raises:
            ValueError: no such argument, or one that is no tensor [B, ...]; a null label of another
                shape, or one that the dtype of the labels does not hold.
        """
        label = extra.get(self.name)
        if not isinstance(label, Tensor) or label.ndim == 0 or len(label) != len(uniform):
            raise ValueError(
                f"label_dropout: extra_args[{self.name!r}] must be a tensor of {len(uniform)} "
                f"labels; got {check.describe(label)}"
            )
        gone = uniform < self.probability
        null = null_label("label_dropout", self.null, label)
        extra[self.name] = torch.where(gone.reshape(-1, *[1] * (label.ndim - 1)), null, label)
        return gone


def check_null(null: object) -> None:
    """TypeError or ValueError for a null label that is no tensor and no finite number."""
    if not isinstance(null, (Tensor, bool)):
        check.finite("null", null)


def null_label(owner: str, null: float | Tensor, label: Tensor) -> Tensor:
    """The null label in the dtype of labels [B, ...] and on their device: [] or their shape[1:].

    The values of a tensor are looked at on a CPU alone: elsewhere that would wait for the device.

    Args:
        owner: the argument that `null` is a part of, for errors.
        null: a number or a tensor of the shape of one label.
        label: the labels.

    Raises:
        ValueError: another shape, or a value that the dtype of the labels does not hold.
    """
    if not isinstance(null, Tensor):
        _require_held(owner, null, label.dtype)
        # Filled in on the device: a copy from the host would be waited for.
        return label.new_full((), null)
    if null.ndim and null.shape != label.shape[1:]:
        hint = ": null[0] has it" if null.shape == (1, *label.shape[1:]) else ""
        raise ValueError(
            f"{owner}: null must be a number or of the shape of one label, "
            f"{list(label.shape[1:])}; got {list(null.shape)}{hint}"
        )
    if null.dtype is not label.dtype and not label.is_floating_point() and can_be_read(null):
        for value in null.flatten().tolist() if null.device.type == "cpu" else ():
            _require_held(owner, value, label.dtype)
    return null.to(label)


def _require_held(owner: str, value: float, dtype: torch.dtype) -> None:
    """ValueError for a null label that labels of a dtype would round, wrap or make infinite."""
    if dtype.is_floating_point:
        most = torch.finfo(dtype).max
        held = -most <= value <= most
    elif dtype is torch.bool:
        held = value in (0, 1)
    elif dtype.is_complex:
        held = True
    else:
        limits = torch.iinfo(dtype)
        held = limits.min <= value <= limits.max and value == int(value)
    if not held:
        raise ValueError(
            f"{owner}: null must be a label that {dtype} holds, the dtype of the labels; "
            f"got {value}"
        )
