"""What users write without the library: preconditioning, guidance and loops in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


def edm(net: Any, sigma_data: float = 0.5, dtype: torch.dtype | None = None) -> Denoiser:
    """Preconditioning of Karras et al. (2022), table 1, from levels on the device."""

    def denoiser(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        total = level**2 + sigma_data**2
        c_skip, c_out = sigma_data**2 / total, level * sigma_data / total.sqrt()
        c_in, c_noise = 1 / total.sqrt(), sigma.log() / 4
        f = net((c_in * x).to(dtype or x.dtype), c_noise, **extra)
        return c_skip * x + c_out * f.to(x.dtype)

    return denoiser


def guided(denoiser: Any, scale: float, conditional: dict[str, Any]) -> Denoiser:
    """Guidance without a classifier in two calls."""

    def both(x: Tensor, sigma: Tensor) -> Tensor:
        without = denoiser(x, sigma)
        return without + scale * (denoiser(x, sigma, **conditional) - without)

    return both


def heun(denoiser: Denoiser, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Algorithm 1 of Karras et al. (2022), line by line."""
    for sigma, following in pairwise(sigmas):
        level = torch.full((x.shape[0],), sigma, device=x.device)
        slope = (x - denoiser(x, level)) / sigma
        x_next = x + (following - sigma) * slope
        if following > 0:
            level = torch.full((x.shape[0],), following, device=x.device)
            slope_next = (x_next - denoiser(x_next, level)) / following
            x_next = x + (following - sigma) * (0.5 * slope + 0.5 * slope_next)
        x = x_next
    return x


def dpmpp_2m(denoiser: Denoiser, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Algorithm 2 of Lu et al., "DPM-Solver++" (2022), in half-logarithmic time."""
    before, h_before = None, 0.0
    for sigma, following in pairwise(sigmas):
        d = denoiser(x, torch.full((x.shape[0],), sigma, device=x.device))
        if following == 0:
            return d
        h = math.log(sigma / following)
        mixed = d
        if before is not None:
            half = h / (2 * h_before)
            mixed = (1 + half) * d - half * before
        x = (following / sigma) * x - math.expm1(-h) * mixed
        before, h_before = d, h
    return x


def _enter(x: Tensor, c: Tensor) -> Tensor:
    return x * c[0]


def _predict(x: Tensor, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    slope = (x - (c[0] * x + c[1] * f)) / c[2]
    y = x + c[3] * slope
    return slope, y, c[4] * y


def _correct(x: Tensor, slope: Tensor, y: Tensor, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    after = (y - (c[0] * y + c[1] * f)) / c[2]
    y = x + c[3] * (0.5 * slope + 0.5 * after)
    return y, c[4] * y


def _multistep(x: Tensor, f: Tensor, before: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d = c[0] * x + c[1] * f
    y = c[2] * x + c[3] * d + c[4] * before
    return d, y, c[5] * y


@cache
def _stages() -> list[Callable[..., Any]]:
    return [torch.compile(s, dynamic=False) for s in (_enter, _predict, _correct, _multistep)]


class Compiled:
    """A loop over EDM's preconditioning whose arithmetic `torch.compile` fuses, stage by stage.

    All levels are known before the loop, so that every stage reads its weights from one small
    tensor: nothing is compiled twice, and nothing else is left for Python than the calls.
    """

    def __init__(self, net: Any, x: Tensor, sigmas: Sequence[float], data: float = 0.5) -> None:
        self.net, self.batch, self.device = net, x.shape[0], x.device
        self.sigmas, self.data = list(sigmas), data
        self.stages = _stages()
        self.noise = [
            torch.full((self.batch,), math.log(s) / 4 if s > 0 else 0.0, device=x.device)
            for s in self.sigmas
        ]

    def _row(self, *values: float) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _coefficients(self, sigma: float) -> tuple[float, float, float]:
        total = sigma**2 + self.data**2
        root = math.sqrt(total)
        return self.data**2 / total, sigma * self.data / root, 1 / root

    def heun(self) -> Callable[[Tensor], Tensor]:
        """The loop, its weights made."""
        enter, predict, correct, _ = self.stages
        first = self._row(self._coefficients(self.sigmas[0])[2])
        rows = []
        for a, b in pairwise(self.sigmas):
            skip, out, _ = self._coefficients(a)
            skip_b, out_b, c_in = self._coefficients(b)
            rows.append(
                (
                    self._row(skip, out, a, b - a, c_in),
                    self._row(skip_b, out_b, b, b - a, c_in),
                    b > 0,
                )
            )

        def run(x: Tensor) -> Tensor:
            shown = enter(x, first)
            for i, (one, two, second) in enumerate(rows):
                slope, y, shown = predict(x, self.net(shown, self.noise[i]), one)
                if second:
                    f = self.net(shown, self.noise[i + 1])
                    y, shown = correct(x, slope, y, f, two)
                x = y
            return x

        return run

    def dpmpp_2m(self) -> Callable[[Tensor], Tensor]:
        """The loop, its weights made."""
        enter, *_, multistep = self.stages
        first = self._row(self._coefficients(self.sigmas[0])[2])
        rows, h_before = [], math.inf
        for a, b in pairwise(self.sigmas):
            skip, out, _ = self._coefficients(a)
            if b == 0:
                rows.append(self._row(skip, out, 0.0, 1.0, 0.0, 1.0))
                break
            h = math.log(a / b)
            half, gain = h / (2 * h_before), -math.expm1(-h)
            c_in = self._coefficients(b)[2]
            rows.append(self._row(skip, out, b / a, gain * (1 + half), -gain * half, c_in))
            h_before = h

        def run(x: Tensor) -> Tensor:
            shown, before = enter(x, first), x
            for row, level in zip(rows, self.noise, strict=False):
                before, x, shown = multistep(x, self.net(shown, level), before, row)
            return x

        return run
