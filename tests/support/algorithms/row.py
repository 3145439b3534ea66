"""What the table-driven tests know of a solver."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from cmsolvers import noise

F64 = torch.float64
SEED = 1234


def steps(n, to_zero):
    """NFE of a solver with one evaluation a step."""
    return n


@dataclass(frozen=True)
class Row:
    """A sampler with options, and the published algorithm written again in plain torch.

    `algorithm(model, x, levels, z)`: model(x, sigma) with sigma a float, levels a list of floats;
    `z(i, start, end)` is the noise of step i over that interval, unit normal.
    """

    sampler: Callable
    algorithm: Callable
    options: dict[str, Any] = field(default_factory=dict)
    nfe: Callable[[int, bool], int] = steps
    order: float | None = None
    """Order on the probability-flow ODE; None: not an ODE method with these options."""
    soft_start: bool = False
    """Whether the order shows only where the first steps, of lower order, are small."""
    counts: tuple[int, ...] | None = None
    """Numbers of steps to measure the order on, where the usual ones will not do."""
    path: bool = False
    """Whether the noise is a Brownian path: the tests then hand one in."""
    single: bool = False
    """Whether a single level is a schedule."""

    @property
    def name(self):
        told = ",".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.sampler.__name__}-{told}" if told else self.sampler.__name__


def fresh(shape):
    """The built-in noise: step i uses draw i of the sampler's stream."""
    return lambda i, *_: noise.normal(shape, SEED, draw=i, stream=noise.STEPS, dtype=F64)


class Path:
    """A smooth stand-in for a Brownian path: any function of time serves to compare algorithms."""

    def __init__(self, shape):
        generator = torch.Generator().manual_seed(5)
        self.rates = torch.rand(6, *shape, generator=generator, dtype=F64) * 3
        self.sizes = torch.randn(6, *shape, generator=generator, dtype=F64)

    def at(self, sigma):
        return (self.sizes * torch.sin(self.rates * (1 + sigma) ** 0.5)).sum(0)

    def __call__(self, sigma, sigma_next):
        return (self.at(sigma_next) - self.at(sigma)) / math.sqrt(abs(sigma - sigma_next))
