"""Dropped labels, for training with classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmsolvers import checks as check


@dataclass(frozen=True, eq=False)
class LabelDropout:
    """Replaces a sample's label by the null label with a probability: `label_dropout=` of losses.

    Args:
        name: of the label in `extra_args`, a tensor [B, ...].
        probability: in [0, 1]; 0.1 is usual.
        null: the label that says nothing: a number, or a tensor of the shape of one label.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range.

    Source: Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022), section 3.2.
    """

    name: str
    probability: float
    null: int | float | Tensor

    def __post_init__(self) -> None:
        check.within("probability", self.probability, 0.0, 1.0)

    def dropped(self, extra: dict[str, object], uniform: Tensor) -> Tensor:
        """Put the null label into `extra` where uniform < probability; which samples, bool [B].

        Raises:
            ValueError: no such argument, or one that is no tensor [B, ...].
        """
        label = extra.get(self.name)
        if not isinstance(label, Tensor) or label.ndim == 0 or len(label) != len(uniform):
            raise ValueError(
                f"label_dropout: extra_args[{self.name!r}] must be a tensor of {len(uniform)} "
                f"labels; got {check.describe(label)}"
            )
        gone = uniform < self.probability
        # A number is filled in on the device: a copy from the host would be waited for.
        null = label.new_full((), self.null) if not isinstance(self.null, Tensor) else self.null
        null = null.to(label)
        extra[self.name] = torch.where(gone.reshape(-1, *[1] * (label.ndim - 1)), null, label)
        return gone
