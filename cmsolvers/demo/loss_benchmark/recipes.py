"""The rows of the benchmark that are the library's own recipes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from cmsolvers.demo.loss_benchmark.entry import Entry, Model
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.losses import (
    consistency_distillation,
    consistency_training,
    denoising_score_matching,
)
from cmsolvers.schedules import karras_sigmas
from cmsolvers.training import (
    LogNormal,
    LogNormalPairs,
    UniformPairs,
    cm_discretization,
    doubling_discretization,
)

_TOTAL = 10**6
"""Steps of a course that is given as a share."""


def edm(network: nn.Module, sigma_data: float) -> Model:
    """A denoiser."""
    return EDM(network, sigma_data)


def consistency_function(network: nn.Module, sigma_data: float) -> Model:
    """A consistency function."""
    return ConsistencyFunction(network, sigma_data)


@lru_cache(maxsize=32)
def _uniform(n: int) -> UniformPairs:
    return UniformPairs(karras_sigmas(n, append_zero=False))


@lru_cache(maxsize=32)
def _lognormal(n: int) -> LogNormalPairs:
    return LogNormalPairs(karras_sigmas(n, append_zero=False))


def _dsm(model: Model, x0: Tensor, *, key: int, step: int) -> Tensor:
    sigma = LogNormal().sample(len(x0), key, draw=step)
    return denoising_score_matching(model, x0, sigma, seed=key, draw=step)


def _cd(model: Model, x0: Tensor, *, key: int, step: int, teacher: Model, target: Model) -> Tensor:
    high, low = _uniform(40).sample(len(x0), key, draw=step)
    return consistency_distillation(model, target, teacher, x0, high, low, seed=key, draw=step)


def _ct(
    model: Model, x0: Tensor, *, key: int, step: int, target: Model, levels: int, **options: Any
) -> Tensor:
    high, low = _uniform(levels).sample(len(x0), key, draw=step)
    return consistency_training(
        model, target, x0, high, low, distance="l2", weight=None, seed=key, draw=step, **options
    )


def _ict(model: Model, x0: Tensor, *, key: int, step: int, levels: int) -> Tensor:
    high, low = _lognormal(levels).sample(len(x0), key, draw=step)
    return consistency_training(model, None, x0, high, low, seed=key, draw=step)


def _ct_levels(share: float) -> dict[str, Any]:
    return {"levels": cm_discretization(int(share * _TOTAL), _TOTAL)}


def _ict_levels(share: float) -> dict[str, Any]:
    return {"levels": doubling_discretization(int(share * _TOTAL), _TOTAL)}


_ROWS = (
    Entry("dsm", _dsm, edm, "denoiser", family="score", source="Karras et al. (2022)"),
    Entry(
        "cd",
        _cd,
        consistency_function,
        "consistency",
        teacher=True,
        target_decay=0.95,
        end=0.002,
        family="consistency",
        source="Song et al. (2023), algorithm 2",
    ),
    Entry(
        "ct",
        _ct,
        consistency_function,
        "consistency",
        options=_ct_levels,
        target_decay=0.95,
        end=0.002,
        family="consistency",
        source="Song et al. (2023), algorithm 3",
    ),
    Entry(
        "ict",
        _ict,
        consistency_function,
        "consistency",
        options=_ict_levels,
        end=0.002,
        family="consistency",
        source="Song & Dhariwal (2023)",
    ),
)

ENTRIES = {entry.name: entry for entry in _ROWS}
"""Every recipe by name, in the order of the table."""
