"""Samples whose loss is not finite: named, kept, or left out and counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmsolvers.engine.mistakes.glances import can_be_read

BAD_ROWS = ("raise", "keep", "zero")


def without_bad_rows(x0: Tensor) -> tuple[Tensor, Tensor]:
    """For "zero": the data with zeros for samples that are not finite, and which these are.

    A NaN in the student's input would reach the gradient of every weight, whatever its loss is
    multiplied by: so it goes out before the networks see it.
    """
    unfit = ~x0.isfinite().flatten(1).all(1) if x0.ndim > 1 else ~x0.isfinite()
    return torch.where(unfit.reshape(-1, *[1] * (x0.ndim - 1)), 0.0, x0).to(x0.dtype), unfit


def judged(
    name: str, per_sample: Tensor, unfit: Tensor | None, bad_rows: str, diagnostics: dict[str, Any]
) -> Tensor:
    """The losses [B] as `bad_rows` wants them.

    Raises:
        FloatingPointError: "raise", on the CPU, names the first sample that is not finite.
    """
    if bad_rows == "zero":
        gone = ~per_sample.detach().isfinite()
        if unfit is not None:
            gone = gone | unfit
        diagnostics["bad_rows"] = gone.sum()
        return torch.where(gone, 0.0, per_sample)
    if bad_rows == "raise" and per_sample.device.type == "cpu" and can_be_read(per_sample):
        per_sample, followed = per_sample.detach(), per_sample
        fine = per_sample.isfinite()
        if not bool(fine.all()):
            rows = (~fine).nonzero()[:, 0].tolist()
            first = float(per_sample.detach()[rows[0]])
            raise FloatingPointError(
                f"{name} must be finite for every sample; got {first:g} at "
                f"sample {rows[0]}"
                + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
                + ' (bad_rows="zero" leaves such samples out)'
            )
        return followed
    return per_sample
