"""A weight that is trained along with the model: the uncertainty of each level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.evaluation import Evaluation


def learned(
    at: Evaluation, value: Tensor, weight: Callable[..., Tensor] | None, *levels: Tensor
) -> Tensor:
    """e^-w value + w with w = weight(*levels), per sample; `value` itself without a weight.

    w balances the levels of one training run: at its optimum e^w is the mean of `value` there.

    Args:
        at: the evaluation.
        value: [B].
        weight: `weight(t) -> [B]` or [B, 1], differentiable: a small network.
        levels: what it is a function of, t or (t, s), [B] each; handed over in float32, or in
            float64 where the data are.

    Raises:
        TypeError: weight cannot be called.
        ValueError: it returned another shape.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), appendix B.2; of t in Lu & Song (2025), eq. 8; of (t, s) in Boffi et al. (2025),
        section 4.
    """
    if weight is None:
        return value
    dtype = torch.promote_types(at.x0.dtype, torch.float32)
    w: object = check.function("weight", weight)(*(level.to(dtype) for level in levels))
    if not isinstance(w, Tensor) or w.shape not in (value.shape, (*value.shape, 1)):
        raise ValueError(
            f"weight must return one number per sample, shape {list(value.shape)}; "
            f"got {check.describe(w)}"
        )
    w = w.reshape(value.shape).double()
    if at.left_out is not None:
        w = at.left_out.follow(w)
    return torch.exp(-w) * value + w
