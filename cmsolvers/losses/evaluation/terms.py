"""What every loss is made of: levels per sample, noised data, weights and the reduction."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise, ops

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


def pair(sigma: object, sigma_next: object, x: Tensor) -> tuple[Tensor, Tensor]:
    """Levels sigma > sigma_next >= 0; entries on a GPU, or compiled, are not read."""
    high, low = levels("sigma", sigma, x), levels("sigma_next", sigma_next, x, zero=True)
    if (
        high.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not bool((high > low).all())
    ):
        at = int((high <= low).nonzero()[0])
        raise ValueError(
            "sigma must be above sigma_next (the student sits at the larger level); "
            f"got {float(high[at]):g} and {float(low[at]):g} at sample {at}"
        )
    return high, low


def noised(x0: Tensor, sigma: Tensor, seed: noise.SeedLike, draw: int, offset: int) -> Tensor:
    """x0 + sigma z with training noise."""
    x = ops.add_noise(x0, sigma, seed=seed, stream=noise.TRAINING, draw=draw, offset=offset)
    return cast(Tensor, x)


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
