"""The sum or the mean of the values of samples, and the values themselves, in one call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cmsolvers.ops.binary import C

FAST_REDUCED: Callable[..., tuple[Tensor, Tensor] | None] | None = (
    None if C is None else C.fast_reduced
)
"""fast_reduced(value, weight, scale, dtype), positional only, of plain float64 [B] on the CPU, the
weight None or constant: (scale sum_b w_b v_b, differentiable in v, and w v) in float32 or float64.
None in every other case, and where one of w v is not finite."""
