"""`check=True`: a look at x, the denoiser and the result of a run, which waits for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers.composed import Rewritten, all_samples, denoised
from cmsolvers.denoisers.flow_map_base import end_of, time_dtype
from cmsolvers.denoisers.guidance import Guided
from cmsolvers.engine.mistakes import criteria
from cmsolvers.engine.mistakes.criteria import About
from cmsolvers.engine.mistakes.glances import can_be_read, root_mean_square
from cmsolvers.engine.mistakes.watching import run_watched
from cmsolvers.engine.observers import not_finite
from cmsolvers.engine.options import Option
from cmsolvers.processes.coordinates import coordinates_of

Result = TypeVar("Result")

CHECK = Option(
    "check",
    False,
    check.flag,
    "look for mistakes, and raise ValueError for what is found: an x that is not finite or holds "
    "less noise than sigmas[0], levels that look like times, a {model} that returns noise, a score "
    "or a raw network's output in place of clean data, a result that is still noise. It takes up "
    "to four evaluations of the {model} more, which `Info` does not count, and waits for the "
    "device. Of a {model} in other coordinates only what is finite and the size of x are looked "
    "at, and of a denoiser at a first level without data (t = 1 of a flow) whether D follows x.",
)
_NEARLY_CLEAN = ((0.1, 0.5), (0.3, 0.8))
"""Noise on the result, and what no denoiser changes of it there; both in parts of its size."""
_NO_DATA = 100.0
"""Ratios sigma / alpha from here on leave next to nothing of the data in x."""
_FEW = 10
"""Levels up to which a result may lie between the modes of the data, and D move it."""
_LARGER = 5.0  # times the size of data: no mean of it


@dataclass(frozen=True)
class _Model:
    """A denoiser that is asked outside of a run."""

    call: Any
    name: str
    extra: Mapping[str, Any]
    maps: bool = False

    def at(self, x: Tensor, level: float) -> Tensor:
        """D, or a flow map to level 0, in float32 at least; it must be finite."""
        sigma = torch.full((len(x),), level, dtype=x.dtype, device=x.device)
        if self.maps and end_of(self.call) is None:
            t = sigma.to(time_dtype(x.dtype))
            d = check.model_output(self.name, self.call(x, t, 0.0 * t, **self.extra), x)
        else:
            extra = dict(self.extra) | all_samples(self.call, x)
            d = denoised(self.call, x, sigma, level, extra)
        _require_finite(f"{self.name} must return finite values at sigma {level:g}", d)
        return d.to(_wide(x))


def run_checked(
    run: Callable[[Any], Result],
    denoiser: Any,
    x: Tensor,
    levels: Sequence[float],
    about: About,
    *,
    closely: bool,
) -> Result:
    """What a sampler's run from x returns, with a warning or an error for mistakes.

    Args:
        run: the run, of a denoiser.
        denoiser: its model.
        x: at level levels[0].
        levels: of the grid.
        about: the run.
        closely: whether `check=True` was given.

    Raises:
        ValueError: with `closely`, a mistake that `CHECK` names.
    """
    if not closely:
        return run_watched(run, denoiser, x, levels, about)
    if not can_be_read(x) or x.numel() == 0:
        return run(denoiser)
    path = coordinates_of(denoiser)
    karras = path.karras
    asked = _Model(denoiser, about.model, about.extra, about.maps)
    _require_finite("x must be finite", x)
    start = float(root_mean_square(x))
    if karras:
        _raise(criteria.about_levels(levels))
        with torch.no_grad():
            far = _check_start(asked, x, start, levels[0], about.grid)
    elif x.numel() >= criteria.LEAST:
        bare = path.ratio(levels[0]) >= _NO_DATA
        least = 0.5 if bare else 0.25
        _raise(criteria.about_start(start, levels[0], path, about.grid, least))
        if bare and not about.maps:  # a map carries x along: it follows x by the spread of the data
            with torch.no_grad():
                _check_following(asked, x, levels[0])
    result = run(denoiser)
    y: Any = result[0] if isinstance(result, tuple) else result
    _require_finite("the result must be finite", y)
    if karras:
        if x.numel() >= criteria.LEAST and criteria.ends_clean(start, levels[0], about.end):
            _raise(criteria.about_end(float(root_mean_square(y)), levels[0], about.model))
        with torch.no_grad():
            if len(levels) > _FEW:
                _check_end(asked, y.detach(), about.end, far)
    return result


def _check_start(model: _Model, x: Tensor, size: float, level: float, grid: str) -> float:
    """Checks x, and D where data hardly shows; the root mean square of D, 0 where it is not asked.

    An eps network gives x / sigma there, a score -x / sigma^2. Both are looked for at two levels,
    because a denoiser of data with variance sigma gives x / sigma too, at this one level.
    """
    if x.numel() < criteria.LEAST:
        return 0.0
    _raise(criteria.about_start(size, level, grid=grid))
    if level < criteria.LARGE or size == 0:
        return 0.0
    noisy, half = x.to(_wide(x)), (0.5 * x).to(x.dtype)
    far, near = model.at(x, level), model.at(half, 0.5 * level)
    if _all_close(noisy, level * far, 0.5 * level * near):
        raise ValueError(criteria.about_noise(model.name))
    if _all_close(noisy, -(level**2) * far, -((0.5 * level) ** 2) * near):
        raise ValueError(
            f"{model.name} must return clean data x0; it returns the score. denoisers.from_score("
            "net, process=...) makes a denoiser of it"
        )
    found = float(root_mean_square(far))
    if not _is_guided(model.call):
        _raise(criteria.about_size(model.name, size, level, found))
    return found


def _check_following(model: _Model, x: Tensor, level: float) -> None:
    """Checks that D does not depend on x, where x is noise alone."""
    d, noisy = model.at(x, level), x.to(_wide(x))
    d = d - d.mean(0)
    slope = float((d * noisy).sum() / noisy.square().sum().clamp_min(1e-30))
    _raise(criteria.about_following(model.name, slope))


def _all_close(x: Tensor, first: Tensor, second: Tensor) -> bool:
    """Whether the noise that is made of D at x and at x / 2 is all of these states."""
    size = float(root_mean_square(x))
    wrong = root_mean_square(x - first), 2 * root_mean_square(0.5 * x - second)
    return all(float(part) < criteria.NEAR * size for part in wrong)


def _is_guided(denoiser: object) -> bool:
    """Whether D is pushed on, beyond the mean of the data."""
    while isinstance(denoiser, Rewritten):
        denoiser = denoiser.inner
    return isinstance(denoiser, Guided)


def _check_end(model: _Model, y: Tensor, end: float, far: float) -> None:
    """A mean of data is not larger than data, and nearly clean data comes back from D as it was."""
    size = float(root_mean_square(y))
    if size == 0 or _is_guided(model.call) or end > _NEARLY_CLEAN[0][0] * size:
        return
    if far > _LARGER * size:
        raise ValueError(
            f"{model.name} must return the mean of the clean data; the root mean square of what it "
            f"returns at sigmas[0] is {far:.3g}, that of the result {size:.3g}. {criteria.PROCESS}"
        )
    z = noise.normal(y.shape, 0, stream=noise.OTHER, dtype=y.dtype, device=y.device)
    for part, most in _NEARLY_CLEAN:
        level = part * size
        if level < getattr(model.call, "sigma_min", 0.0):
            continue
        state = y + math.sqrt(level**2 - end**2) * z
        wrong = float(root_mean_square(model.at(state, level) - y.to(_wide(y)))) / size
        if wrong > most:
            raise ValueError(
                f"{model.name} must return clean data x0, and so nearly clean data as it is; at "
                f"sigma {level:.3g} it changes the result by {100 * wrong:.0f} %. Of a network's "
                "raw output F denoisers.EDM and its siblings make a denoiser"
            )


def _require_finite(said: str, values: Tensor) -> None:
    bad = not_finite(values).nonzero()
    if len(bad):
        raise ValueError(f"{said}; got NaN or infinity in sample {int(bad[0])}")


def _raise(text: str | None) -> None:
    if text is not None:
        raise ValueError(text)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
