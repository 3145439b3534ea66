"""What a loss returns."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class LossOutput(NamedTuple):
    """The value of a loss and what it was made of.

    Attributes:
        loss: a tensor [] with gradient; [B] where `reduction` is "none". In float32 at least.
        per_sample: the terms of it, [B], without gradient: weights are in them.
        levels: (t, s), float64 [B] each: where the student stood, and where its map ended or the
            second level of the pair. Losses of one level have s = t.
        diagnostics: tensors without gradient, by name, as docs/losses.md lists them.
    """

    loss: Tensor
    per_sample: Tensor
    levels: tuple[Tensor, Tensor]
    diagnostics: dict[str, Any]
