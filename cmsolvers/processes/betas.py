"""Betas of DDPM's chain, the noise levels they lead to, and subsets of its times; float64 numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cmsolvers import checks as check

Array: TypeAlias = npt.NDArray[np.float64]

_ENDS = {"linear": (1e-4, 0.02), "scaled_linear": (8.5e-4, 0.012)}
_OFFSET = 0.008  # s of the cosine schedule
_CAP = 0.999  # its largest beta


def betas_of(
    n: int, schedule: str | Sequence[float], start: float | None, end: float | None
) -> Array:
    """The n betas; arguments and errors are documented in `DDPM`."""
    if isinstance(schedule, str) and schedule in _ENDS:
        usual = _ENDS[schedule]
        first = check.positive("beta_start", usual[0] if start is None else start)
        last = check.positive("beta_end", usual[1] if end is None else end)
        if not first <= last < 1:
            raise ValueError(
                f"beta_start and beta_end must be in (0, 1) and in order; "
                f"got {first:g} and {last:g}"
            )
        if schedule == "linear":
            return np.linspace(first, last, n)
        return np.square(np.linspace(math.sqrt(first), math.sqrt(last), n))
    for name, value in (("beta_start", start), ("beta_end", end)):
        if value is not None:
            raise ValueError(f"{name} must be None for this schedule; got {check.describe(value)}")
    if isinstance(schedule, str):
        if schedule != "cosine":
            raise ValueError(
                f"schedule must be 'linear', 'scaled_linear', 'cosine' or the betas; "
                f"got {schedule!r}"
            )
        return _cosine(n)
    if len(schedule) != n:
        raise ValueError(f"schedule must hold num_steps = {n} betas; got {len(schedule)}")
    for i, beta in enumerate(schedule):
        if not (0 < beta < 1 or (beta == 1 and i == n - 1)):
            raise ValueError(f"schedule must hold betas in (0, 1); got {beta:g} at index {i}")
    return np.array(schedule, dtype=np.float64)


def _cosine(n: int) -> Array:
    """1 - cos^2 b / cos^2 a between neighbouring angles, without the cancellation."""
    angles = (np.arange(n + 1) / n + _OFFSET) / (1 + _OFFSET) * (math.pi / 2)
    a, b = angles[:-1], angles[1:]
    betas: Array = np.minimum(np.sin(b - a) * np.sin(b + a) / np.cos(a) ** 2, _CAP)
    return betas


def levels_of(betas: Array, zero_terminal_snr: bool) -> Array:
    """sqrt((1 - alphas_bar) / alphas_bar), ascending; the last is infinite without signal."""
    with np.errstate(divide="ignore", over="ignore"):
        logs = 0.5 * np.cumsum(np.log1p(-betas))  # ln sqrt(alphas_bar)
        if not zero_terminal_snr:
            return np.sqrt(np.expm1(-2.0 * logs))
        alphas, missing = np.exp(logs), -np.expm1(logs)
        first, last = alphas[0], alphas[-1]
        scaled: Array = first * (alphas - last) / (first - last)
        # 1 - scaled, from what is missing to 1 instead of from what is left
        rest: Array = (first * missing - last * missing[0]) / (first - last)
        return np.sqrt(rest * (1.0 + scaled)) / scaled


def spaced(steps: int, n: int, spacing: str, offset: int) -> list[int]:
    """A subset of n of the times 0 ... steps - 1, descending; see `DDPM.timesteps`."""
    n, offset = check.count("n", n), check.count("offset", offset, least=0)
    if n > steps:
        raise ValueError(f"n must not exceed the {steps} steps of the chain; got {n}")
    if spacing == "leading":
        stride = steps // n
        times = [offset + stride * i for i in range(n - 1, -1, -1)]
        if times[0] >= steps:
            raise ValueError(f"offset must leave times below {steps}; got {offset}")
        return times
    if offset:
        raise ValueError(f"offset must be 0 for spacing {spacing!r}; got {offset}")
    if spacing == "trailing":
        return [round(steps * (n - i) / n) - 1 for i in range(n)]
    if spacing == "linspace":
        return (
            [round((steps - 1) * (n - 1 - i) / (n - 1)) for i in range(n)] if n > 1 else [steps - 1]
        )
    raise ValueError(f"spacing must be 'trailing', 'leading' or 'linspace'; got {spacing!r}")
