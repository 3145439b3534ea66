"""Two-dimensional data whose shape everyone knows; point i is a function of (seed, i) alone.

Each has mean 0 and deviation 0.5 over both coordinates, up to the error of its own n points, so it
needs no scale. Lengths below are those before that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.data.stream_places import toy_uniforms
from cmsolvers.training.data.tensor_data import TensorData

Points = tuple[Tensor, Tensor | None]
DEVIATION = 0.5


def toys(name: str, n: int = 100_000, *, seed: int = 0) -> TensorData:
    """n points of a toy, [n, 2], with labels where it has parts.

    Args:
        name: "two_moons" (2 classes), "swiss_roll" (none), "eight_gaussians" (8), "checkerboard"
            (8 squares) or "spirals" (2 arms).
        n: points. The first n of a larger set are the same points.
        seed: of the points; not that of the run.

    Raises:
        TypeError, ValueError: an unknown name, or a number out of range.
    """
    if name not in TOYS:
        near = get_close_matches(str(name), TOYS, 1)
        raise ValueError(
            f"toy must be one of {', '.join(TOYS)}; got {name!r}"
            + (f": {near[0]}?" if near else "")
        )
    index = torch.arange(check.count("n", n))
    u = toy_uniforms(index, check.count("seed", seed, least=0))
    points, labels = TOYS[name](u)
    classes = None if labels is None else CLASSES[name]
    return TensorData(points.float(), labels, classes=classes, source=f"toy:{name}")


def _two_moons(u: Tensor) -> Points:
    """Half circles of radius 1 around (0, 0), upwards, and (1, 1/2), downwards; noise 0.1."""
    moon = (2 * u[:, 0]).long()
    angle = math.pi * u[:, 1]
    sign = 1.0 - 2.0 * moon
    x = torch.stack((sign * angle.cos() + moon, sign * angle.sin() + 0.5 * moon), dim=1)
    x += 0.1 * _normals(u)
    x -= torch.tensor([0.5, 0.25], dtype=u.dtype)
    # Around (1/2, 1/4), E cos^2 = E sin^2 = 1/2 and E sin = 2/pi.
    first = 0.5 + 0.25
    second = 0.5 - 2 * 0.25 * (2 / math.pi) + 0.25**2
    return _scaled(x, (first + second) / 2 + 0.1**2), moon


def _swiss_roll(u: Tensor) -> Points:
    """(t cos t, t sin t), t uniform in [1.5 pi, 4.5 pi]; noise 0.5."""
    low, high = 1.5 * math.pi, 4.5 * math.pi
    t = low + (high - low) * u[:, 0]
    x = torch.stack((t * t.cos(), t * t.sin()), dim=1) + 0.5 * _normals(u)
    # The means are integrals of t cos t and t sin t over the interval, divided by its length.
    width = high - low
    mean = [
        (math.cos(high) + high * math.sin(high) - math.cos(low) - low * math.sin(low)) / width,
        (math.sin(high) - high * math.cos(high) - math.sin(low) + low * math.cos(low)) / width,
    ]
    x -= torch.tensor(mean, dtype=u.dtype)
    squares = (high**3 - low**3) / (3 * width)
    return _scaled(x, (squares - mean[0] ** 2 - mean[1] ** 2) / 2 + 0.5**2), None


def _eight_gaussians(u: Tensor) -> Points:
    """Deviation 0.1, at the corners of an octagon of radius 1."""
    corner = (8 * u[:, 0]).long()
    angle = corner * (math.pi / 4)
    x = torch.stack((angle.cos(), angle.sin()), dim=1) + 0.1 * _normals(u)
    return _scaled(x, 0.5 + 0.1**2), corner


def _checkerboard(u: Tensor) -> Points:
    """Eight of the sixteen squares of side 1 in [-2, 2]^2, those with an even sum of places."""
    square = (8 * u[:, 0]).long()
    row = square // 2
    column = 2 * (square % 2) + row % 2
    x = torch.stack((column + u[:, 1], row + u[:, 2]), dim=1) - 2.0
    return _scaled(x, 4 / 3), square


def _spirals(u: Tensor) -> Points:
    """Two arms, r = angle from 0 to 3 pi with density growing along, opposite; noise 0.3."""
    arm = (2 * u[:, 0]).long()
    angle = 3 * math.pi * u[:, 1].sqrt()
    sign = 1.0 - 2.0 * arm
    x = (sign * angle)[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1)
    return _scaled(x + 0.3 * _normals(u), (3 * math.pi) ** 2 / 4 + 0.3**2), arm


def _normals(u: Tensor) -> Tensor:
    """Two unit normals of the last two uniforms (Box and Muller 1958), float64 [b, 2]."""
    radius = (-2.0 * u[:, 2].log()).sqrt()
    angle = 2 * math.pi * u[:, 3]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)


def _scaled(x: Tensor, variance: float) -> Tensor:
    """With deviation 0.5, where the mean of both coordinates' variances is known."""
    return x * (DEVIATION / math.sqrt(variance))


TOYS: dict[str, Callable[[Tensor], Points]] = {
    "two_moons": _two_moons,
    "swiss_roll": _swiss_roll,
    "eight_gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
}
CLASSES = {"two_moons": 2, "eight_gaussians": 8, "checkerboard": 8, "spirals": 2}
