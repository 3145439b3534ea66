"""The size of an error, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsolvers.ops.norms import root_mean_square


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def scaled_error(
    error: Tensor, a: Tensor, b: Tensor, *, rtol: float, atol: float, larger: bool = False
) -> Tensor:
    """Root mean square of error / (atol + rtol max(|a|, |b|)), float64 [B].

    Args:
        error: [B, ...].
        a: a state, like error.
        b: another.
        rtol: relative tolerance.
        atol: absolute tolerance, positive.
        larger: divide by the larger of the two tolerances, not by their sum.

    Source: Hairer, Norsett & Wanner (1993), eq. II.4.11; Lu et al. (2022), appendix C.4, for the
    larger one.
    """
    scale = torch.maximum(a.detach().abs(), b.detach().abs()).mul_(rtol)
    scale = scale.clamp_min_(atol) if larger else scale.add_(atol)
    return root_mean_square(torch.div(error.detach(), scale, out=scale))
