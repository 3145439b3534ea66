"""Mistakes that make garbage without a word, told from levels and sizes: criteria and texts.

They are on the safe side: a mistake may pass, and no right use should be warned of. `watching`
reads the sizes of a first run, `checked_runs` asks the denoiser too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from cmsolvers.processes.coordinates import KARRAS, Coordinates

LEAST = 32
"""Entries of x from which on its size says something: the root mean square of 32 unit normals is
below 1/2 once in 10^9."""
LARGE = 5.0
"""Levels from here on are larger than data usually is."""
NEAR = 0.3
"""Part of x that may be left where an output is taken for all of its noise, or for its score."""
_MOST_NOISE = 1.75
"""Times its standard deviation: 32 normals have a larger root mean square once in 10^8."""
_MOST_DATA = 1000.0
PROCESS = "Is the process of its network the one that it was trained in?"


@dataclass(frozen=True)
class About:
    """What texts and looks need to know of a run.

    Attributes:
        model: what the first argument is called.
        end: the level where the run ends.
        extra: further arguments of the model.
        maps: whether it is a flow map, which answers with states of any level.
        grid: what the argument with the levels is called.
    """

    model: str
    end: float
    extra: Mapping[str, Any]
    maps: bool = False
    grid: str = "sigmas"


class Answer(NamedTuple):
    """What was measured of one call of a model.

    Attributes:
        level: of the call.
        left: the part of x that is left where the answer is taken for its noise.
        size: root mean square of the answer.
    """

    level: float
    left: float
    size: float


def about_answers(model: str, start: float, answers: Sequence[Answer]) -> str | None:
    """What is wrong with the answers of a run from a state of this root mean square."""
    large = [answer for answer in answers if answer.level >= LARGE]
    if not large:
        return None
    if is_noise(large):
        return about_noise(model)
    first = large[0]
    return about_size(model, start, first.level, first.size)


def is_noise(answers: Sequence[Answer]) -> bool:
    """Whether all answers, at levels from LARGE on, were the noise in x.

    A denoiser of data with variance sigma gives x / sigma too, but at this one level alone.
    """
    levels = [answer.level for answer in answers]
    return all(a.left <= NEAR for a in answers) and max(levels) >= 2 * min(levels)


def about_size(model: str, start: float, level: float, size: float) -> str | None:
    """What is wrong with an answer as large as the noise, at a level where x is little else."""
    if level < LARGE or start >= 1.1 * level or size <= 0.7 * level:
        return None
    found = f"{size:.3g}, about that of the noise or more" if math.isfinite(size) else "not finite"
    return (
        f"{model} must return clean data x0; the root mean square of what it returns at sigma = "
        f"{level:g} is {found}. {PROCESS} (Of a network of eps, "
        "v, score or F denoisers.from_eps, from_v, from_score or EDM make a denoiser.)"
    )


def about_levels(sigmas: Sequence[float]) -> str | None:
    """What is wrong with levels that look like something else; None if nothing is."""
    levels = [level for level in sigmas if level > 0]
    if len(levels) < 4:
        return None
    up = levels[0] < levels[-1]
    levels.sort(reverse=True)
    steps = [a - b for a, b in pairwise(levels)]
    if levels[0] >= 500 and levels[-1] >= 1 and max(steps) - min(steps) <= 1.0 + 1e-3:
        return (
            "sigmas must be noise levels sigma / alpha; they lie in even steps from "
            f"{levels[0]:g} to {levels[-1]:g}, as timesteps do. Those of a chain are "
            "schedules.ddpm_sigmas(n, process), of any times t of it process.sigma_hat(t)"
        )
    # Levels of noise lie closer and closer; these lie apart more and more where they begin.
    if (0.9 if up else 0.99) < levels[0] < 1 and steps[1] > 1.01 * steps[0]:
        shown = levels[2::-1] if up else levels[:3]
        place = "end" if up else "begin"
        return (
            "sigmas must be noise levels sigma / alpha, sqrt(1 / alphas_cumprod - 1) of a chain, "
            f"the largest first; they {place} with {shown[0]:g}, {shown[1]:g}, {shown[2]:g}, as "
            "alphas_cumprod does, or sqrt(1 - alphas_cumprod). See schedules.ddpm_sigmas"
        )
    return None


def about_start(
    size: float, level: float, path: Coordinates = KARRAS, grid: str = "sigmas", least: float = 0.25
) -> str | None:
    """What is wrong with an x of this root mean square at a level; an x of zeros is meant so.

    Args:
        size: root mean square of x.
        level: of x.
        path: coordinates of both.
        grid: the argument whose first entry the level is.
        least: part of the noise that x must hold.
    """
    if size == 0:
        return None
    sigma = path.sigma(level)
    if path.karras:
        if size >= least * sigma:
            return None
        return (
            f"x must hold noise of its level {level:g}, which is {grid}[0] or that of step "
            f"`start`; its root mean square is {size:.3g}. Unit noise is to be multiplied by "
            f"{grid}[0]"
        )
    alpha = path.alpha(level)
    if least * sigma <= size <= _MOST_NOISE * math.hypot(sigma, alpha * _largest_data(path)):
        return None
    beside = f" beside {alpha:.3g} times the data" if alpha >= 0.01 else ""
    return (
        f"x must be noise of standard deviation {sigma:.3g} at the first level in {path}, "
        f"{level:.4g}{beside}; its root mean square is {size:.3g}"
    )


def _largest_data(path: Coordinates) -> float:
    """The root mean square of the largest data that is plausible in coordinates."""
    spread = getattr(path.process, "sigma_data", None)
    return 20.0 * spread if isinstance(spread, (int, float)) else _MOST_DATA


def about_following(model: str, slope: float) -> str | None:
    """What is wrong with D that follows x, by this factor, where x holds nothing of the data."""
    if abs(slope) <= 0.5:
        return None
    return (
        f"{model} must return clean data x0; where x is noise alone it returns {slope:.2g} times x "
        "and more. Does its network read 1000 t (from_flow(net, c_noise=lambda t: 1000 * t)), or "
        "count time the other way (lambda x, t: -net(x, 1 - t))?"
    )


def about_noise(model: str) -> str:
    """What to do about a model that returns noise."""
    return (
        f"{model} must return clean data x0; it returns the noise in x, as an eps network does. "
        "denoisers.from_eps(net, process=...) makes a denoiser of it"
    )


def ends_clean(start: float, level: float, end: float) -> bool:
    """Whether a run from mere noise, far larger than data, must end in something smaller."""
    return level >= LARGE and end <= 0.1 * level and abs(start / level - 1) < 0.1


def about_end(size: float, level: float, model: str) -> str | None:
    """What is wrong where the result is of the size of the noise that the run began with."""
    if size <= 0.7 * level:
        return None
    found = f"{size:.3g}" if math.isfinite(size) else "not finite"
    return (
        f"the root mean square of the result is {found}: the noise of sigmas[0] = {level:g} is "
        f"not gone. {model} must return clean data x0 for (x, sigma). Of a network of eps, v, "
        "score or F denoisers.from_eps, from_v, from_score or EDM make such a function, with the "
        "process that it was trained in. (Or the data is as large as sigmas[0], which then must be "
        "larger.)"
    )
