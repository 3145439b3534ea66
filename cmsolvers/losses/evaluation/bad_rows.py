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


class LeftOut:
    """Samples that are left out: what gradients come back to a network's output for them is 0.

    A loss of 0 is not enough: a NaN of the teacher or target makes the gradient 0 times NaN, which
    reaches every weight. Which samples these are is known before gradients come back, but after
    the networks are called. Where torch.compile or a transform traces, nothing is done.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self.rows = rows

    def add(self, rows: Tensor) -> Tensor:
        """Leave out further samples, bool [B]; all that are left out now."""
        self.rows = rows if self.rows is None else self.rows | rows
        return self.rows

    def without_bad(self, data: Tensor) -> Tensor:
        """Data made by a network with zeros for samples that are not finite, which are left out."""
        fit, unfit = without_bad_rows(data)
        self.add(unfit)
        return fit

    def follow(self, made: Tensor) -> Tensor:
        """The output of a network, [B, ...], whose gradient is watched."""
        traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if not traced and made.grad_fn is not None:  # a hook of a leaf would stay
            made.register_hook(self._without)  # type: ignore[no-untyped-call]
        return made

    def _without(self, gradient: Tensor) -> Tensor:
        if self.rows is None or len(self.rows) != len(gradient):
            return gradient
        rows = self.rows.reshape(-1, *[1] * (gradient.ndim - 1))
        return gradient.masked_fill(rows, 0.0)


def judged(
    name: str,
    per_sample: Tensor,
    left_out: LeftOut | None,
    bad_rows: str,
    diagnostics: dict[str, Any],
) -> Tensor:
    """The losses [B] as `bad_rows` wants them.

    Raises:
        FloatingPointError: "raise", on the CPU, names the first sample that is not finite.
    """
    if bad_rows == "zero":
        gone = ~per_sample.detach().isfinite()
        if left_out is not None:
            gone = left_out.add(gone)
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
