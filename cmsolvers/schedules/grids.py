"""What the noise schedules share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

from cmsolvers import checks as check

P = ParamSpec("P")


def on_the_host(schedule: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Tell whoever gives a `device`, as schedules elsewhere take, why there is none."""

    @wraps(schedule)
    def levels(*args: P.args, **options: P.kwargs) -> Tensor:
        if "device" in options:
            raise TypeError(
                f"{schedule.__name__}() got an unexpected keyword argument 'device': levels stay "
                "on the host, and a sampler takes them from there for x on any device"
            )
        return schedule(*args, **options)

    return levels


def bounds(n: int, sigma_min: float, sigma_max: float) -> tuple[int, float, float]:
    """The number of levels and the ends of a grid, checked."""
    n = check.count("n", n)
    if n > 1:
        return n, *check.sigma_range(sigma_min, sigma_max)
    low, high = check.positive("sigma_min", sigma_min), check.positive("sigma_max", sigma_max)
    if low > high:
        raise ValueError(f"sigma_min must not exceed sigma_max; got {low:g} and {high:g}")
    return n, low, high


def ramp(n: int) -> Tensor:
    """From 0 to 1 in n even places."""
    return torch.linspace(0, 1, n, dtype=torch.float64, device="cpu")


def finish(levels: Tensor, first: float, last: float, append_zero: bool) -> Tensor:
    """Put the ends in to the bit, refuse levels that float64 cannot tell apart, append the 0."""
    zero = check.flag("append_zero", append_zero)
    if len(levels) > 1:
        levels[-1] = last
    levels[0] = first
    if not bool((levels.diff() < 0).all()):
        raise ValueError(
            f"n must leave levels that float64 can tell apart; "
            f"got {len(levels)} levels from {first:g} to {last:g}"
        )
    return torch.cat([levels, levels.new_zeros(1)]) if zero else levels
