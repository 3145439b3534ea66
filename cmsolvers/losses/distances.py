"""Distances d(a, b) -> [B] between two batches, one number per sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """The difference as [B, d], in float32 at least: float16 cannot hold 80^2 = sigma_max^2."""
    work = torch.promote_types(a.dtype, torch.float32)
    return (a.to(work) - b.to(work)).reshape(a.shape[0], _size(a))


def _size(a: Tensor) -> int:
    """Elements per sample."""
    return math.prod(a.shape[1:])


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference per sample: a, b of shape [B, ...] -> [B], in float32 at least."""
    return _difference(a, b).abs().mean(1)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference per sample: a, b of shape [B, ...] -> [B], in float32 at least."""
    return _difference(a, b).square().mean(1)


def pseudo_huber(c: float | None = None) -> Distance:
    """d(a, b) = sqrt(|a - b|^2 + c^2) - c, with |.| the norm per sample.

    Quadratic below c, linear above it, so single bad targets weigh less than with `l2`.

    Args:
        c: positive; None is 0.00054 sqrt(d) for samples of d elements.

    Returns:
        d, from a and b of shape [B, ...] to [B], in float32 at least.

    Raises:
        TypeError: c is no number.
        ValueError: c is not positive and finite.

    Source: Song & Dhariwal, "Improved Techniques for Training Consistency Models" (2023), eq. 8.
    """
    fixed = None if c is None else check.positive("c", c)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        square = _difference(a, b).square().sum(1)
        scale = 0.00054 * math.sqrt(max(1, _size(a))) if fixed is None else fixed
        # |d|^2 / (sqrt(|d|^2 + c^2) + c): the same number without the cancellation near 0.
        return square / (torch.sqrt(square + scale * scale) + scale)

    return distance


def lpips_distance(net: str = "vgg", *, model: Distance | None = None, size: int = 224) -> Distance:
    """LPIPS on images in [-1, 1], the distance of the published models; needs the lpips package.

    Args:
        net: backbone of the lpips package: "vgg", "alex" or "squeeze".
        model: an `lpips.LPIPS` (or any callable of two batches) to use in place of a new one.
        size: images are resized to at least size x size, which its features were made for.

    Returns:
        d, from a and b of shape [B, 1 or 3, H, W] to [B]; it raises ValueError for other shapes.

    Raises:
        ImportError: the package is missing and no model was given.
        TypeError: a model that cannot be called, or a size that is no int.
        ValueError: size below 1.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
        (2018).
    """
    size = check.count("size", size)
    if model is None:
        try:
            import lpips
        except ImportError as error:
            raise ImportError("lpips_distance needs `pip install lpips`") from error
        model = lpips.LPIPS(net=net).eval().requires_grad_(False)
    check.function("model", model)

    def images(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS needs images [B, 1 or 3, H, W]; got shape {list(x.shape)}")
        x = x.float().expand(-1, 3, -1, -1)
        if min(x.shape[2:]) < size:
            x = torch.nn.functional.interpolate(x, size=(size, size), mode="bilinear")
        return x

    def distance(a: Tensor, b: Tensor) -> Tensor:
        if isinstance(model, torch.nn.Module):
            model.to(a.device)
        value: Tensor = model(images(a), images(b))
        return value.reshape(a.shape[0])

    return distance


_NAMED: dict[str, Callable[[], Distance]] = {
    "l1": lambda: l1,
    "l2": lambda: l2,
    "pseudo_huber": pseudo_huber,
    "lpips": cache(lpips_distance),  # it loads a network
}


def get_distance(distance: str | Distance) -> Distance:
    """A distance by name ("l1", "l2", "pseudo_huber", "lpips"), or the callable itself.

    Raises:
        TypeError: neither a name nor a callable.
        ValueError: an unknown name.
    """
    if isinstance(distance, str):
        if distance not in _NAMED:
            known = ", ".join(repr(name) for name in _NAMED)
            raise ValueError(f"distance must be {known} or a callable; got {distance!r}")
        return _NAMED[distance]()
    return check.function("distance", distance)
