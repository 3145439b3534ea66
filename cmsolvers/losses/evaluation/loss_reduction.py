"""From the losses of samples to what a loss returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmsolvers.losses.evaluation.bad_rows import LeftOut, judged
from cmsolvers.losses.evaluation.terms import Weighted, distances, weigh
from cmsolvers.ops.reduction import FAST_REDUCED


def reduced(
    name: str,
    found: Tensor | Weighted,
    x0: Tensor,
    left_out: LeftOut | None,
    reduction: str,
    bad_rows: str,
    diagnostics: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The loss and the terms [B] without gradient, in float32 at least.

    Args:
        name: of the loss, for errors.
        found: the losses of samples [B].
        x0: the data.
        left_out: which samples count as bad already; None where none is left out.
        reduction: "mean", "sum" or "none".
        bad_rows: see `judged`.
        diagnostics: where bad rows are counted.

    Raises:
        ValueError: what was found is not one number per sample.
        FloatingPointError: as `judged`.
    """
    dtype = torch.float64 if x0.dtype is torch.float64 else torch.float32
    if (
        FAST_REDUCED is not None
        and bad_rows != "zero"
        and reduction != "none"
        and not torch.compiler.is_compiling()
    ):
        value, weight = found if isinstance(found, Weighted) else (found, None)
        batch = x0.shape[0]
        if batch and type(value) is Tensor and value.shape == (batch,):
            done = FAST_REDUCED(value, weight, 1.0 / batch if reduction == "mean" else 1.0, dtype)
            if done is not None:
                return done
    values = found.tensor() if isinstance(found, Weighted) else found
    values = judged(name, distances(name, values, x0), left_out, bad_rows, diagnostics)
    return weigh(values, None, reduction).to(dtype), values.detach().to(dtype)
