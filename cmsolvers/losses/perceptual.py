"""Distances of two batches that are no norm of their difference, such as LPIPS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check


@dataclass(frozen=True)
class Between:
    """A distance that needs both batches, not their difference alone.

    It stands where a loss takes a norm: `cd(..., distance=Between(lambda a, b: ...))`.

    Args:
        function: `function(a, b) -> [B]`, a [B, ...] with gradient, b without.

    Raises:
        TypeError: function cannot be called.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        check.function("function", self.function)


def lpips_distance(
    net: str = "vgg", *, model: Callable[..., Tensor] | None = None, size: int = 224
) -> Between:
    """LPIPS on images in [-1, 1], the distance of the published models; needs the lpips package.

    Args:
        net: backbone of the lpips package: "vgg", "alex" or "squeeze"; loaded once.
        model: an `lpips.LPIPS` (or any callable of two batches) to use in place of a new one.
        size: images are resized to at least size x size, which its features were made for.

    Returns:
        A `Between` of batches [B, 1 or 3, H, W]; it raises ValueError for other shapes.

    Raises:
        ImportError: the package is missing and no model was given.
        TypeError: a model that cannot be called, or a size that is no int.
        ValueError: size below 1.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
        (2018).
    """
    least = check.count("size", size)
    judge: Any = _loaded(net) if model is None else check.function("model", model)

    def images(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS needs images [B, 1 or 3, H, W]; got shape {list(x.shape)}")
        x = x.float().expand(-1, 3, -1, -1)
        if min(x.shape[2:]) < least:
            x = torch.nn.functional.interpolate(x, size=(least, least), mode="bilinear")
        return x

    def distance(a: Tensor, b: Tensor) -> Tensor:
        if isinstance(judge, torch.nn.Module):
            judge.to(a.device)
        value: Tensor = judge(images(a), images(b))
        return value.reshape(a.shape[0])

    return Between(distance)


@cache
def _loaded(net: str) -> torch.nn.Module:
    try:
        import lpips as package
    except ImportError as error:
        raise ImportError("lpips_distance needs `pip install lpips`") from error
    model: torch.nn.Module = package.LPIPS(net=net).eval().requires_grad_(False)
    return model
