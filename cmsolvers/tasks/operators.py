"""What an edit keeps of an image: orthogonal maps A, and which of the entries of A x are known.

Source: Song et al., "Consistency Models" (2023), appendix D, and "Score-Based Generative Modeling
through Stochastic Differential Equations" (2021), appendix I.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from cmsolvers import checks as check


class Operator(ABC):
    """An orthogonal A, so that A^-1 is its transpose, and which entries of A x are known."""

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """A x, for every sample as many numbers as x has, in any shape."""

    @abstractmethod
    def inverse(self, coefficients: Tensor) -> Tensor:
        """A^-1 of what `transform` returned."""

    @abstractmethod
    def known(self, coefficients: Tensor) -> Tensor:
        """Bool, broadcastable to `coefficients`: True where they are known."""

    @abstractmethod
    def check(self, name: str, x: Tensor) -> None:
        """Raise ValueError for images that the operator does not fit; `name` is for its text."""

    @abstractmethod
    def measure(self, x: Tensor) -> Tensor:
        """What is known of x in its usual form, such as a grey or a small image."""

    @abstractmethod
    def lift(self, measured: Tensor) -> Tensor:
        """A full image with these measurements; the rest of it does not matter to an edit."""

    def restore(self, x: Tensor, y: Tensor) -> Tensor:
        """Put what is known of y into x: A^-1 [known ? A y : A x], in x's dtype.

        Raises:
            TypeError: x or y are not floating tensors.
            ValueError: shapes that do not fit each other or the operator.
        """
        self.check("x", check.state("x", x))
        self.check("y", check.state("y", y))
        if x.shape != y.shape:
            raise ValueError(f"y must have the shape of x, {list(x.shape)}; got {list(y.shape)}")
        return self.replace(x, self.transform(working(y)))

    def replace(self, x: Tensor, given: Tensor, known: Tensor | None = None) -> Tensor:
        """`restore` with A y already at hand (`given`), and perhaps the mask `known` too."""
        own = self.transform(working(x))
        known = self.known(own) if known is None else known
        return self.inverse(torch.where(known, given.to(own.dtype), own)).to(x.dtype)

    def kept(self, y: Tensor) -> Tensor:
        """The known part of y alone: A^-1 [known ? A y : 0]."""
        given = self.transform(working(y))
        return self.inverse(given.masked_fill(~self.known(given), 0.0)).to(y.dtype)


class Inpaint(Operator):
    """Inpainting: A = 1, and all pixels outside of the mask are known.

    Args:
        mask: bool, broadcastable to the images: True where they are to be filled in. Whatever y
            has there, NaN too, is never read.

    Raises:
        TypeError: a mask that is not a bool tensor.
    """

    def __init__(self, mask: Tensor) -> None:
        if getattr(mask, "dtype", None) is not torch.bool:
            raise TypeError(f"mask must be a bool tensor; got {check.describe(mask)}")
        self.mask = mask

    def check(self, name: str, x: Tensor) -> None:
        shape = self.mask.shape
        padded = (1,) * (x.ndim - len(shape)) + tuple(shape)
        fits = len(padded) == x.ndim and all(
            a in (1, b) for a, b in zip(padded, x.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"mask must broadcast to {name}, shape {list(x.shape)}; got {list(shape)}"
            )
        if self.mask.device != x.device:
            raise ValueError(
                f"mask must be on the device of {name}, {x.device}; got {self.mask.device}"
            )

    def transform(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, coefficients: Tensor) -> Tensor:
        return coefficients

    def known(self, coefficients: Tensor) -> Tensor:
        return ~self.mask

    def measure(self, x: Tensor) -> Tensor:
        """Pixels outside of the mask, 0 inside."""
        return x.masked_fill(self.mask, 0.0)

    def lift(self, measured: Tensor) -> Tensor:
        return measured


class Colorize(Operator):
    """Colourisation: A turns the channels so that the first is brightness, which is known.

    Args:
        weights: of the channels (dimension 1) in the brightness, not all 0; the default is that of
            red, green and blue in ITU-R BT.601.

    Raises:
        TypeError: weights that are no numbers.
        ValueError: weights that are not finite, sum to 0 or are none.
    """

    def __init__(self, weights: Sequence[float] = (0.2989, 0.5870, 0.1140)) -> None:
        values = check.floats("weights", weights)
        if not values or math.fsum(values) == 0.0:
            raise ValueError(f"weights must not sum to 0; got {values}")
        self._shares = tuple(v / math.fsum(values) for v in values)
        norm = math.hypot(*values)
        self._axis = reflector(tuple(v / norm for v in values))

    def check(self, name: str, x: Tensor) -> None:
        count = len(self._axis)
        if x.ndim < 2 or x.shape[1] != count:
            raise ValueError(
                f"{name} must have {count} channels, shape [B, {count}, ...]; got {list(x.shape)}"
            )

    def transform(self, x: Tensor) -> Tensor:
        """Brightness first, then the colours, in dimension 1."""
        return reflected(x, self._axis, 1)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Channels again: a reflection is its own inverse."""
        return reflected(coefficients, self._axis, 1)

    def known(self, coefficients: Tensor) -> Tensor:
        return first_of(coefficients, 1)

    def measure(self, x: Tensor) -> Tensor:
        """The grey image [B, 1, ...], weights scaled to sum to 1."""
        grey: Tensor = (x * along(self._shares, x, 1)).sum(1, keepdim=True)
        return grey

    def lift(self, measured: Tensor) -> Tensor:
        """The grey image in all channels."""
        return measured.expand(-1, len(self._axis), *measured.shape[2:]).contiguous()


class SuperResolve(Operator):
    """Super-resolution: A turns each square patch so that its mean comes first, which is known.

    Args:
        factor: side of a patch, at least 1.

    Raises:
        TypeError: a factor that is no int.
        ValueError: a factor below 1.
    """

    def __init__(self, factor: int) -> None:
        self.factor = check.count("factor", factor)
        self._axis = reflector((1.0 / self.factor,) * self.factor**2)

    def check(self, name: str, x: Tensor) -> None:
        if x.ndim < 3 or x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(
                f"{name} must have rows and columns, [B, ..., H, W], in multiples of factor = "
                f"{self.factor}; got shape {list(x.shape)}"
            )

    def transform(self, x: Tensor) -> Tensor:
        """[..., H, W] -> [..., H / factor, W / factor, factor^2]."""
        return reflected(_patches(x, self.factor).flatten(-2), self._axis, -1)

    def inverse(self, coefficients: Tensor) -> Tensor:
        p, shape = self.factor, coefficients.shape
        patches = reflected(coefficients, self._axis, -1).reshape(*shape[:-1], p, p)
        rows = patches.transpose(-3, -2)
        return rows.reshape(*shape[:-3], p * shape[-3], p * shape[-2])

    def known(self, coefficients: Tensor) -> Tensor:
        """The first of each patch: factor times its mean."""
        return first_of(coefficients, -1)

    def measure(self, x: Tensor) -> Tensor:
        """The small image: means of patches."""
        return _patches(x, self.factor).mean((-2, -1))

    def lift(self, measured: Tensor) -> Tensor:
        """The small image with every pixel repeated."""
        p = self.factor
        return measured.repeat_interleave(p, -1).repeat_interleave(p, -2)


def _patches(x: Tensor, p: int) -> Tensor:
    """[..., H, W] -> [..., H / p, W / p, p, p]."""
    *lead, height, width = x.shape
    return x.reshape(*lead, height // p, p, width // p, p).transpose(-3, -2)


def working(x: Tensor) -> Tensor:
    """x in the precision of the arithmetic here: float64 stays, everything else is float32."""
    return x if x.dtype is torch.float64 else x.float()


def reflector(v: tuple[float, ...]) -> tuple[float, ...]:
    """The unit u whose reflection 1 - 2 u u^T takes the unit vector v to the first axis."""
    u = [(1.0 if k == 0 else 0.0) - value for k, value in enumerate(v)]
    norm = math.hypot(*u)
    return tuple(value / norm if norm else 0.0 for value in u)


def reflected(x: Tensor, u: tuple[float, ...], dim: int) -> Tensor:
    """(1 - 2 u u^T) x along a dimension."""
    axis = along(u, x, dim)
    return x - 2.0 * axis * (axis * x).sum(dim, keepdim=True)


def along(values: tuple[float, ...], like: Tensor, dim: int) -> Tensor:
    """Values as a tensor that broadcasts along one dimension of `like`."""
    shape = [1] * like.ndim
    shape[dim] = len(values)
    return _on_device(values, like.dtype, like.device).reshape(shape)


def first_of(like: Tensor, dim: int) -> Tensor:
    """Mask that is True at index 0 of one dimension of `like`, and broadcasts to it."""
    shape = [1] * like.ndim
    shape[dim] = like.shape[dim]
    return (torch.arange(like.shape[dim], device=like.device) == 0).reshape(shape)


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values on a device, cached: a copy from the host may wait for the device."""
    with torch.inference_mode(False):  # kept, and perhaps for a gradient the next time
        return torch.tensor(values, dtype=torch.float64, device="cpu").to(device, dtype)
