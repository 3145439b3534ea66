"""What every loss is made of: levels per sample, values with weights, and the reduction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cmsolvers import checks as check

REDUCTIONS = ("mean", "sum", "none")


class Weighted(NamedTuple):
    """Values of the samples [B] and their weights [B], None for 1: not multiplied yet."""

    value: Tensor
    weight: object = None

    def tensor(self) -> Tensor:
        """The product, [B]."""
        return weigh(self.value, self.weight, "none")


def levels(name: str, value: object, x: Tensor, *, zero: bool = False) -> Tensor:
    """Noise levels, one per sample: a number or a tensor [] or [B] -> float64 [B].

    They are positive, or with `zero` at least 0.
    """
    level = check.level(name, value, x, zero=zero)
    if not isinstance(level, Tensor):
        return torch.full((x.shape[0],), level, dtype=torch.float64, device=x.device)
    if level.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = ~(((level >= 0) if zero else (level > 0)) & level.isfinite())
        if bool(bad.any()):
            wanted = "not be negative or infinite" if zero else "be positive and finite"
            raise ValueError(f"{name} must {wanted}; got {float(level[bad][0]):g}")
    return level.detach().double().expand(x.shape[0])


def weigh(value: Tensor, weight: object, reduction: str) -> Tensor:
    """Per-sample values [B] times weights [B], reduced."""
    if weight is not None:
        if not isinstance(weight, Tensor) or weight.shape not in (value.shape, torch.Size([])):
            raise ValueError(
                f"weight must return a tensor of shape {list(value.shape)}; "
                f"got {check.describe(weight)}"
            )
        value = value * weight.to(value)
    if reduction == "none":
        return value
    return value.mean() if reduction == "mean" else value.sum()


def reduction_name(reduction: object) -> str:
    """One of "mean", "sum", "none"."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be "mean", "sum" or "none"; got {reduction!r}')
    return str(reduction)


def distances(name: str, value: object, x: Tensor) -> Tensor:
    """What a distance returned: one number per sample, shape [B]."""
    if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must return one number per sample, shape [{x.shape[0]}]; "
            f"it returned {check.describe(value)}"
        )
    return value
