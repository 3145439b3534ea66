"""The rows of the benchmark: every loss of the library, each with the model that its paper trains.

What a row needs beyond what the loss says of itself stands in `DIFFERENCES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from torch import Tensor, nn

from cmsolvers.demo.loss_benchmark.entry import Course, Entry, Kind, Model
from cmsolvers.denoisers import EDM, ConsistencyFunction, from_flow, from_trigflow
from cmsolvers.denoisers.flow_maps import AverageVelocity, TrajectoryFunction, TrigFlowMap
from cmsolvers.losses import catalogue, consistency_distillation, consistency_training
from cmsolvers.losses.level_distributions import LogNormalPairs, UniformPairs
from cmsolvers.losses.loss import Loss
from cmsolvers.schedules import karras_sigmas
from cmsolvers.training import cm_discretization, doubling_discretization

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

KINDS: dict[str, Kind] = {
    "denoiser": "denoiser",
    "consistency": "consistency",
    "flow map": "flow_map",
}


# --- what changes on the way ---------------------------------------------------------------------


WARMUP = 0.2
"""Share of a training in which what has a warm-up rises: long runs of papers spend less on it."""


def scheduled(course: Course, *, names: Sequence[str]) -> dict[str, Any]:
    """For losses that are told how many steps there are: `total`, or `warmup`, or both."""
    steps = {"total": course.total, "warmup": max(1, int(WARMUP * course.total))}
    return {name: steps[name] for name in names}


@lru_cache(maxsize=32)
def _lognormal(n: int) -> LogNormalPairs:
    return LogNormalPairs(karras_sigmas(n, append_zero=False))


@lru_cache(maxsize=512)
def _uniform(n: int) -> UniformPairs:
    return UniformPairs(karras_sigmas(n, append_zero=False))


def _doubling_pairs(course: Course) -> dict[str, Any]:
    return {"times": _lognormal(doubling_discretization(course.step, course.total, 10, 160))}


def _consistency_distillation(
    model: Model, x0: Tensor, *, key: int, step: int, teacher: Model, target: Model
) -> Tensor:
    high, low = _uniform(40).sample(len(x0), key, draw=step)
    return consistency_distillation(model, target, teacher, x0, high, low, seed=key, draw=step)


def _consistency_training(
    model: Model, x0: Tensor, *, key: int, step: int, target: Model, levels: int
) -> Tensor:
    high, low = _uniform(levels).sample(len(x0), key, draw=step)
    return consistency_training(
        model, target, x0, high, low, distance="l2", weight=None, seed=key, draw=step
    )


def _song_levels(course: Course) -> dict[str, Any]:
    return {"levels": cm_discretization(course.step, course.total)}


# --- rows ----------------------------------------------------------------------------------------

DIFFERENCES: dict[str, Mapping[str, Any]] = {
    # Only the diagonal of a map is trained, so it is a denoiser that is sampled.
    "flow_matching": {"make_model": flow_denoiser, "kind": "denoiser"},
    "ict": {"options": _doubling_pairs},
}
"""Attributes of an `Entry` that differ from what the loss says of itself, by the loss's name."""


def row(loss: Loss, **differences: Any) -> Entry:
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
        "kind": KINDS[about.model],
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


_EARLIER = partial(
    Entry,
    make_model=consistency_function,
    kind="consistency",
    target_decay=0.95,
    end=0.002,
    family="eulerian",
    source="Song et al. (2023)",
)
_ROWS = (
    *(row(loss, **DIFFERENCES.get(loss.recipe.name, {})) for loss in catalogue.losses()),
    _EARLIER("consistency_distillation", _consistency_distillation, teacher=True),
    _EARLIER("consistency_training", _consistency_training, options=_song_levels),
)

ENTRIES = {entry.name: entry for entry in _ROWS}
"""Every recipe by name, in the order of the table."""
