"""Where a model's own ODE leads: data made of noise, and the prediction of two steps in one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.evaluation.combination import Combination, of
from cmsolvers.losses.evaluation.drawn_levels import carried
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.model_views import ModelView
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.teacher_steps import TeacherStep, stepped
from cmsolvers.losses.times.distribution import Distribution
from cmsolvers.losses.times.step_tables import step_of
from cmsolvers.processes.coordinates import Coordinates, coordinates
from cmsolvers.schedules import karras_sigmas


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


def generated(view: ModelView, z: Tensor, steps: int, solver: str | TeacherStep = "heun") -> Tensor:
    """Data [B, ...] that a model's probability-flow ODE makes of unit noise, without gradient.

    It runs in the model's own coordinates.

    Args:
        view: the model.
        z: unit normals [B, ...].
        steps: of the ODE.
        solver: "heun", "euler" or a `TeacherStep`; the last step, to clean data, is Euler's for
            "heun".

    Raises:
        TypeError, ValueError: steps is no positive int, an unknown solver.
    """
    own = view.at_home()
    levels = times_to_data(own.path, steps)
    x = State((z * own.path.sigma(levels[0])).to(z.dtype), _full(levels[0], z))
    for level in levels[1:]:
        step = "euler" if solver == "heun" and level == 0.0 else solver
        x = stepped(step, own, x, _full(level, z))
    return x.x


def ddim_clean(
    view: ModelView, x: State, between: Tensor, end: Tensor, path: Coordinates
) -> Combination:
    """The D at x with which one DDIM step to `end` goes where the model's two go, [B, ...].

    Both steps are x_u = alpha_u D + sigma_u / sigma_t (x - alpha_t D).

    Args:
        view: the model.
        x: a state of `path` at t.
        between: the level of the first step's end, float64 [B].
        end: of the second's, below `between`.
        path: coordinates of the state and the levels.
    """
    first = _ddim(path, x, view.clean(x).detach(), between)
    middle = x.at(first, between)
    last = _ddim(path, middle, view.clean(middle).detach(), end)
    kept, added = _ddim_weights(path, x.level, end)
    return (last - of(x.x) * kept) / added


def _ddim(path: Coordinates, x: State, clean: Combination, end: Tensor) -> Combination:
    kept, added = _ddim_weights(path, x.level, end)
    return clean * added + of(x.x) * kept


def _ddim_weights(path: Coordinates, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of x_t and of D in a DDIM step to u, float64 [B]."""
    kept: Tensor = path.sigma(u) / path.sigma(t)
    return kept, path.alpha(u) - kept * path.alpha(t)


def _full(level: float, like: Tensor) -> Tensor:
    return torch.full((len(like),), level, dtype=torch.float64, device=like.device)


def further_level(
    at: Evaluation, times: Distribution[Tensor], u: Tensor, name: str = "denoising"
) -> Tensor:
    """A level of a distribution for each share u [B], in the model's coordinates, float64 [B].

    Raises:
        TypeError: no `Distribution`.
        ValueError: one that gives pairs or needs more than one number.
    """
    if not isinstance(times, Distribution):
        raise TypeError(
            f"{name} must be a Distribution of levels, such as LogNormal(); got "
            f"{check.describe(times)}"
        )
    drawn: object = None
    if times.numbers == 1:
        drawn = times.quantiles(u[:, None], step_of(at.key, at.draw))
    if not isinstance(drawn, Tensor):
        raise ValueError(
            f"{name} must be a distribution of single levels, of one uniform number each; got "
            f"{type(times).__name__}"
        )
    return carried(drawn, coordinates("coordinates of times", times.coordinates), at.path)
