"""The rows of the benchmark: every loss of the library, each with the model that its paper trains.

What a row needs beyond what the loss says of itself stands in `DIFFERENCES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from torch import Tensor, nn

from cmsolvers import losses
from cmsolvers.demo.loss_benchmark.entry import Course, Entry, Model
from cmsolvers.denoisers import EDM, ConsistencyFunction, from_flow, from_trigflow
from cmsolvers.denoisers.flow_maps import AverageVelocity, TrajectoryFunction, TrigFlowMap
from cmsolvers.losses import (
    AnglePairs,
    AnnealedPairs,
    DoublingPairs,
    ECTPairs,
    SquareRootPairs,
    loss_table,
)
from cmsolvers.losses.evaluation.recipe import Loss

# --- models: network and sigma_data -> model -----------------------------------------------------


def edm(network: nn.Module, sigma_data: float) -> Model:
    """A denoiser in Karras coordinates."""
    return EDM(network, sigma_data)


def flow_denoiser(network: nn.Module, sigma_data: float) -> Model:
    """A denoiser in flow coordinates, whose network is the velocity."""
    return from_flow(network)


def trigflow_denoiser(network: nn.Module, sigma_data: float) -> Model:
    """A denoiser whose network is the velocity of TrigFlow."""
    return from_trigflow(network, sigma_data)


def consistency_function(network: nn.Module, sigma_data: float) -> Model:
    """A consistency function in Karras coordinates."""
    return ConsistencyFunction(network, sigma_data)


def trigflow_consistency(network: nn.Module, sigma_data: float) -> Model:
    """A consistency function in TrigFlow coordinates."""
    return TrigFlowMap(network, sigma_data)


def trajectory_function(network: nn.Module, sigma_data: float) -> Model:
    """A flow map in Karras coordinates."""
    return TrajectoryFunction(network, sigma_data)


def average_velocity(network: nn.Module, sigma_data: float) -> Model:
    """A flow map in flow coordinates."""
    return AverageVelocity(network)


def trigflow_map(network: nn.Module, sigma_data: float) -> Model:
    """A flow map in TrigFlow coordinates."""
    return TrigFlowMap(network, sigma_data, second="end")


MODELS = {
    ("denoiser", "karras"): edm,
    ("denoiser", "flow"): flow_denoiser,
    ("denoiser", "trigflow"): trigflow_denoiser,
    ("consistency", "karras"): consistency_function,
    ("consistency", "trigflow"): trigflow_consistency,
    ("flow map", "karras"): trajectory_function,
    ("flow map", "flow"): average_velocity,
    ("flow map", "trigflow"): trigflow_map,
}
"""By what a loss says that it trains, and the coordinates that it is meant for."""


# --- what changes on the way ---------------------------------------------------------------------


WARMUP = 0.2
"""Share of a training in which what has a warm-up rises: long runs of papers spend less on it."""


def scheduled(course: Course, *, names: Sequence[str]) -> dict[str, Any]:
    """For losses that are told how many steps there are: `total`, or `warmup`, or both."""
    steps = {"total": course.total, "warmup": max(1, int(WARMUP * course.total))}
    return {name: steps[name] for name in names}


@lru_cache(maxsize=8)
def _times(make: Callable[..., Any], *given: float, **options: float) -> Any:
    return make(*given, **options)


def _square_root_pairs(course: Course) -> dict[str, Any]:
    return {"times": _times(SquareRootPairs, course.total)}


def _doubling_pairs(course: Course) -> dict[str, Any]:
    # 10 to 160 pairs; the published 1,280 at the end are for runs a hundred times as long.
    return {"times": _times(DoublingPairs, course.total, 10, 160)}


def _annealed_pairs(course: Course) -> dict[str, Any]:
    return {"times": _times(AnnealedPairs, course.total)}


def _ect_stages(course: Course) -> dict[str, Any]:
    return {"times": _times(ECTPairs, q=2.0, stage_steps=max(1, course.total // 8))}


HALVINGS = 4
"""Rounds of progressive distillation: a student of 8 steps, then of 4, 2 and 1."""


def _halved_steps(course: Course) -> dict[str, Any]:
    return {"times": _times(AnglePairs, 2 ** (HALVINGS - 1 - course.round))}


def two_stages(
    model: Model, x0: Tensor, *, step: int, teacher: Model | None = None, **given: Any
) -> Any:
    """Truncated consistency training after a first half of easy consistency tuning."""
    if teacher is None:
        return losses.ect(model, x0, step=step, **given)
    del given["times"]
    return losses.tcm(model, x0, step=step, teacher=teacher, **given)


# --- rows ----------------------------------------------------------------------------------------

DIFFERENCES: dict[str, Mapping[str, Any]] = {
    # Only the diagonal of a map is trained, so it is a denoiser that is sampled.
    "flow_matching": {"make_model": flow_denoiser, "kind": "denoiser"},
    "cd": {"target_decay": 0.95},
    "ct": {"target_decay": 0.95, "options": _square_root_pairs},
    "ict": {"options": _doubling_pairs},
    "ect": {"options": _ect_stages},
    # The second half, with what the first half has learned as its teacher.
    "tcm": {"loss": two_stages, "teacher": False, "rounds": 2, "options": _ect_stages},
    # Without guidance: nothing here has a condition.
    "lcm": {"target_decay": 0.95, "options": {"guidance": None}},
    "mcd": {"target_decay": 0.95, "options": _annealed_pairs},
    "reflow": {"make_model": flow_denoiser, "kind": "denoiser", "pairs": True},
    "progressive_distillation": {"rounds": HALVINGS, "options": _halved_steps},
    "shortcut": {"target_decay": 0.99},
    # The paper's 17 steps of the teacher would leave a thirtieth of the budget to the network.
    "ctm": {"teacher": True, "target_decay": 0.95, "options": {"steps": 4}},
    "tvm": {"target_decay": 0.99},
}
"""Attributes of an `Entry` that differ from what the loss says of itself, by the loss's name."""


def row(loss: Loss, /, **differences: Any) -> Entry:
    """The entry of a loss of the library: model, coordinates, teacher and source as it says.

    Args:
        loss: one that `cmsolvers.losses.loss` made.
        differences: attributes of the `Entry` to set otherwise.
    """
    about = loss.recipe
    make_model = MODELS[about.model, about.coordinates]
    usual: dict[str, Any] = {
        "name": about.name,
        "loss": loss,
        "make_model": make_model,
        "kind": about.model,
        "teacher": about.teacher == "required",
        "family": about.identity,
        "source": about.source,
    }
    own = inspect.signature(loss).parameters
    if names := [name for name in ("total", "warmup") if name in own]:
        usual["options"] = partial(scheduled, names=names)
    if make_model is consistency_function:
        usual["end"] = 0.002
    return Entry(**(usual | differences))


ENTRIES = {
    loss.recipe.name: row(loss, **DIFFERENCES.get(loss.recipe.name, {}))
    for loss in loss_table.losses()
}
"""Every recipe by name, in the order of the table."""
