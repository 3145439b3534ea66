"""Data made of noise by a model's own ODE, and a model's answer at states of other coordinates."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.combination import Combination, of
from cmsolvers.losses.models import ModelView
from cmsolvers.losses.states import State
from cmsolvers.processes.coordinates import Coordinates
from cmsolvers.processes.elementary import broadcastable
from cmsolvers.schedules import karras_sigmas

Method: TypeAlias = Literal["euler", "heun"]


def carried(x: State, path: Coordinates, to: Coordinates) -> State:
    """A state in other coordinates, at the same ratio of noise to data.

    It has no data at all where alpha is 0, and no finite place in Karras coordinates then.
    """
    if path == to:
        return State(x.x, x.level)
    level = to.level(path.ratio(x.level))
    factor = to.alpha(level) / path.alpha(x.level)
    return State((x.x * broadcastable(factor, x.x)).to(x.x.dtype), level)


def clean_by(view: ModelView, x: State, path: Coordinates) -> Combination:
    """D of a model in any coordinates at a state of `path`, [B, ...]."""
    return view.clean(carried(x, path, view.path))


def times_to_data(path: Coordinates, steps: int) -> list[float]:
    """Descending levels of an ODE's steps, from the largest to 0.

    Equal steps of the level; in Karras coordinates those of `karras_sigmas`, from 80 to 0.002 to 0.

    Raises:
        TypeError, ValueError: steps is no positive int.
    """
    count = check.count("steps", steps)
    top = path.max_level
    if math.isinf(top):
        found: list[float] = karras_sigmas(count).tolist()
        return found
    return [top * (1.0 - k / count) for k in range(count)] + [0.0]


def generated(view: ModelView, z: Tensor, steps: int, method: Method = "heun") -> Tensor:
    """Data [B, ...] that a model's probability-flow ODE makes of unit noise, without gradient.

    Args:
        view: the model, in its own coordinates.
        z: unit normals [B, ...].
        steps: of the ODE.
        method: "euler" (one call per step) or "heun" (two, one in the last step).

    Raises:
        TypeError, ValueError: steps is no positive int, an unknown method.
    """
    check.choice("method", method, ("euler", "heun"))
    levels = times_to_data(view.path, steps)
    x = (z * view.path.sigma(levels[0])).to(z.dtype)
    for t, s in pairwise(levels):
        here = State(x, _full(t, z))
        slope = view.velocity(here).detach()
        moved = of(x) + slope * (s - t)
        if method == "heun" and s > 0.0:
            there = State(moved.tensor().to(z.dtype), _full(s, z))
            moved = of(x) + (slope + view.velocity(there).detach()) * ((s - t) / 2.0)
        x = moved.tensor().to(z.dtype)
    return x


def ddim_clean(
    view: ModelView, x: State, between: Tensor, end: Tensor, path: Coordinates
) -> Combination:
    """The D at x with which one DDIM step to `end` goes where the model's two go, [B, ...].

    Both steps are x_u = alpha_u D + sigma_u / sigma_t (x - alpha_t D).

    Args:
        view: the model, in any coordinates.
        x: a state of `path` at t.
        between: the level of the first step's end, float64 [B].
        end: of the second's, below `between`.
        path: coordinates of the state and the levels.
    """
    first = _ddim(path, x, clean_by(view, x, path).detach(), between)
    middle = State(first.tensor().to(x.x.dtype), between)
    last = _ddim(path, middle, clean_by(view, middle, path).detach(), end)
    kept = path.sigma(end) / path.sigma(x.level)
    return (last - of(x.x) * kept) / (path.alpha(end) - kept * path.alpha(x.level))


def _ddim(path: Coordinates, x: State, clean: Combination, end: Tensor) -> Combination:
    kept = path.sigma(end) / path.sigma(x.level)
    return clean * (path.alpha(end) - kept * path.alpha(x.level)) + of(x.x) * kept


def _full(level: float, like: Tensor) -> Tensor:
    return torch.full((len(like),), level, dtype=torch.float64, device=like.device)
