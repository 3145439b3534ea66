"""Limits on what a denoiser predicts: static clipping, and dynamic thresholding."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.denoisers.composed import Rewritten, signature
from cmsolvers.denoisers.protocol import Denoiser

__all__ = ["Clipped", "Thresholded", "clipped", "thresholded"]


class Clipped(Rewritten):
    """D clamped to [low, high]; made by `clipped`.

    Attributes:
        inner: the denoiser whose D is clamped.
        bounds: (low, high).
    """

    def __init__(self, denoiser: Denoiser, low: float, high: float) -> None:
        super().__init__(denoiser)
        self.bounds = check.finite("low", low), check.finite("high", high)
        check.below("low", self.bounds[0], "high", self.bounds[1])

    def rewrite(self, x: Tensor, d: Tensor) -> Tensor:
        """D clamped to the bounds, whatever x is."""
        return ops.weighted_step(x, (d,), (0.0, 1.0), clamp=self.bounds)

    def _settled(self) -> Hashable | None:
        inner = signature(self.inner)
        return None if type(self) is not Clipped or inner is None else ("clip", self.bounds, inner)


def clipped(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Clipped:
    """D clamped to [low, high], the range of the data: static thresholding.

    In a sampler with one evaluation per step the step's own launch clamps; else D is clamped where
    it is made of the network's output.

    Args:
        denoiser: `D(x, sigma, **extra_args)`.
        low: smallest value.
        high: largest value.

    Returns:
        A denoiser, and a module with `denoiser` as its submodule where that is one.

    Raises:
        TypeError: a denoiser that cannot be called.
        ValueError: bounds that are not finite, low not below high.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models" (2020), section 3.3 with data
    scaled to [-1, 1]; named in Saharia et al. (2022), section 2.3.
    """
    return Clipped(denoiser, low, high)


class Thresholded(Rewritten):
    """Dynamic thresholding; made by `thresholded`."""

    def __init__(self, denoiser: Denoiser, quantile: float, floor: float) -> None:
        super().__init__(denoiser)
        self._quantile = check.within("quantile", quantile, 0.0, 1.0)
        self._floor = check.positive("floor", floor)

    def rewrite(self, x: Tensor, d: Tensor) -> Tensor:
        """D clamped to the quantile of each sample's absolute values, and shrunk to the floor."""
        if not d[:1].numel():
            return d
        wide = d if d.dtype is torch.float64 else d.float()
        limit = _quantile(wide.reshape(d.shape[0], -1).abs(), self._quantile)
        limit = limit.clamp_min(self._floor).reshape([-1] + [1] * (d.dim() - 1))
        clamped = torch.minimum(torch.maximum(wide, -limit), limit)
        return (clamped * (self._floor / limit)).to(d.dtype)

    def _settled(self) -> Hashable | None:
        inner = signature(self.inner)
        if type(self) is not Thresholded or inner is None:
            return None
        return "threshold", self._quantile, self._floor, inner


def thresholded(denoiser: Denoiser, quantile: float = 0.995, floor: float = 1.0) -> Thresholded:
    """Dynamic thresholding: a sample that leaves [-floor, floor] is clamped and shrunk back.

    With s the larger of `floor` and the quantile of abs(D) over each sample, D becomes
    clamp(D, -s, s) floor / s; where s = floor that is clipping.

    Args:
        denoiser: `D(x, sigma, **extra_args)`.
        quantile: in [0, 1], interpolated linearly between order statistics.
        floor: the data's range is [-floor, floor]; positive.

    Returns:
        A denoiser, and a module with `denoiser` as its submodule where that is one; it adds torch
        operations on D, and no wait for the device.

    Raises:
        TypeError: a denoiser that cannot be called.
        ValueError: quantile outside [0, 1], floor not positive.

    Source: Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
    Understanding" (2022), section 2.3, with floor = 1.
    """
    return Thresholded(denoiser, quantile, floor)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Quantile of each row, as torch.quantile has it, for rows of any length."""
    count = values.shape[1]
    place = q * (count - 1)
    low = math.floor(place)
    top = values.topk(count - low, dim=1).values
    lower, upper = top[:, -1], top[:, max(count - low - 2, 0)]
    return torch.lerp(lower, upper, place - low)
