"""The levels at which a model is sampled: schedules by name, for the coordinates of the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import schedules
from cmsolvers.processes.coordinates import coordinates_of
from cmsolvers.training.model_wrappers import process_of
from cmsolvers.training.models import Model
from cmsolvers.training.named_options import known_name, option_names

SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": schedules.karras_sigmas,
    "exponential": schedules.exponential_sigmas,
    "polyexponential": schedules.polyexponential_sigmas,
    "vp": schedules.vp_sigmas,
    "cosine": schedules.cosine_sigmas,
    "ddpm": schedules.ddpm_sigmas,
    "beta": schedules.beta_sigmas,
    "flow": schedules.flow_times,
}
"""By name. "flow" is for models in flow coordinates; the others are levels sigma / alpha."""

OURS = ("n", "append_zero", "process")
"""Arguments of schedules that follow from the model and the number of steps."""


LATE = ("ddpm", "flow")
"""Schedules whose smallest level depends on the number of steps, and is not sigma_min."""


def schedule_of(model: Model, name: str | None) -> str:
    """The name of a schedule; None is the usual one of the model's kind.

    Raises:
        ValueError: no such schedule, or one that does not fit the model's coordinates.
    """
    row = model.spec.row
    if name is None:
        return "flow" if row.coordinates == "flow" else "ddpm" if row.chain else "karras"
    known_name("schedule", name, SCHEDULES)
    if name == "flow" and row.coordinates != "flow":
        raise ValueError(
            f"schedule must be another one than 'flow', whose levels are those of flow "
            f"coordinates; the model, {model.spec.kind}, is in {row.coordinates} ones"
        )
    return name


def schedule_options(name: str) -> list[str]:
    """Options of a schedule that a user may give."""
    return [option for option in option_names(SCHEDULES[name]) if option not in OURS]


def grid(
    model: Model, name: str, steps: int, options: Mapping[str, object], *, to_zero: bool = True
) -> list[float]:
    """Levels in the model's coordinates, `steps` above 0 and, with `to_zero`, a 0 at the end.

    Args:
        model: whose sigma_min, sigma_max and chain they follow.
        name: of a schedule.
        steps: how many levels above 0.
        options: of the schedule.
        to_zero: whether 0 is the last level.

    Raises:
        TypeError, ValueError: options out of range.
    """
    spec, made = model.spec, SCHEDULES[name]
    known = inspect.signature(made).parameters
    given: dict[str, Any] = {"append_zero": to_zero}
    given |= {key: getattr(spec, key) for key in ("sigma_min", "sigma_max") if key in known}
    if "process" in known and spec.row.chain:
        given["process"] = process_of(spec.wrapper.get("process", "ddpm"))
    levels: list[float] = made(check.count("steps", steps), **given | dict(options)).tolist()
    path = coordinates_of(model.function)
    if name == "flow" or path.karras:
        return levels
    return [float(path.level(level)) if level else 0.0 for level in levels]


def above_zero(model: Model, name: str, steps: int, options: Mapping[str, object]) -> list[float]:
    """Levels of `steps` steps that end at sigma_min: for solvers that cannot step to 0."""
    if name not in LATE:
        return grid(model, name, steps + 1, options, to_zero=False)
    found = grid(model, name, steps, options, to_zero=False)
    last = float(coordinates_of(model.function).level(model.spec.sigma_min))
    return [*found, last] if last < found[-1] else found


def few_levels(model: Model, name: str, steps: int, options: Mapping[str, object]) -> list[float]:
    """Levels where a function that jumps to clean data is called, the largest first.

    The schedule's smallest level is of no use to it: f is the identity there. So a grid of one
    level more is made, and the last one is left out. Chains and flows have no such level.
    """
    if name in LATE:
        return grid(model, name, steps, options, to_zero=False)
    return grid(model, name, steps + 1, options, to_zero=False)[:-1]


def checked_levels(model: Model, levels: Sequence[float]) -> list[float]:
    """Levels that a user wrote: numbers, strictly descending, 0 at most at the end.

    Raises:
        TypeError, ValueError: they are not, or are larger than any that the model was trained at.
    """
    found = [check.non_negative("levels", level) for level in levels]
    for one, two in pairwise(found):
        if not two < one:
            raise ValueError(f"levels must be strictly descending; got {two:g} after {one:g}")
    if not found or found[0] == 0:
        raise ValueError(f"levels must begin with one above 0; got {list(levels)}")
    row, most = model.spec.row, model.spec.sigma_max
    if row.coordinates == "karras" and not row.chain and found[0] > most * (1 + 1e-6):
        raise ValueError(
            f"levels must not exceed sigma_max, {most:g}, where the model's training ended; "
            f"got {found[0]:g}"
        )
    return found
