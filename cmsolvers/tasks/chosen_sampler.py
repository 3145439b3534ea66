"""Calls of a sampler that a user chose, with what the one at hand takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers import ConsistencyFunction
from cmsolvers.denoisers.composed import Rewritten
from cmsolvers.solvers.multistep_consistency import consistency_sample

Sampler: TypeAlias = Callable[..., Any]


def with_own_end(model: Any, sampler: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options; a consistency function has its own sigma_min, which the sampler must use."""
    check.function("model", model)
    check.function("sampler", sampler)
    base, preset = sampler, {}
    if isinstance(sampler, partial):
        base, preset = sampler.func, sampler.keywords
    while isinstance(model, Rewritten):
        model = model.inner
    if base is not consistency_sample or not isinstance(model, ConsistencyFunction):
        return options
    end = {"sigma_min": model.sigma_min, **preset, **options}["sigma_min"]
    if end != model.sigma_min:
        raise ValueError(f"sigma_min must be that of model, {model.sigma_min:g}; got {end}")
    return {**options, "sigma_min": end}


def sample(
    sampler: Sampler, model: Any, x: Tensor, sigmas: Any, key: noise.Key, options: dict[str, Any]
) -> Any:
    """Run it; solvers without noise may take no seed."""
    seed = {"seed": key} if _takes_seed(sampler) else {}
    return sampler(model, x, sigmas, **seed, **options)


def _takes_seed(sampler: Sampler) -> bool:
    try:
        parameters = inspect.signature(sampler).parameters.values()
    except ValueError:  # not everything that can be called tells
        return True
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)
