"""Calls of a sampler that the user chose, with the arguments that this sampler takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers import ConsistencyFunction
from cmsolvers.denoisers.composed import Rewritten
from cmsolvers.engine.adaptive import AdaptiveInfo
from cmsolvers.engine.observers import Info
from cmsolvers.solvers.multistep_consistency import consistency_sample

Model: TypeAlias = Callable[..., Tensor]
"""A denoiser or a consistency function, `(x, sigma, **extra_args) -> Tensor`."""
Levels: TypeAlias = Tensor | Sequence[float]
Result: TypeAlias = Tensor | tuple[Tensor, Info | AdaptiveInfo]
"""What a sampler returns: samples, with `return_info` or `trajectory` also what the run cost."""
Sampler: TypeAlias = Callable[..., Result]


def with_own_end(
    model: Model, sampler: Sampler, options: Mapping[str, object]
) -> dict[str, object]:
    """The options for the sampler, with the sigma_min of a consistency function among them.

    Raises:
        TypeError: model or sampler cannot be called.
        ValueError: options, or a partial sampler, name another sigma_min than the model's.
    """
    check.function("model", model)
    check.function("sampler", sampler)
    base: object = sampler
    preset: Mapping[str, object] = {}
    if isinstance(sampler, partial):
        base, preset = sampler.func, sampler.keywords
    while isinstance(model, Rewritten):
        model = model.inner
    if base is not consistency_sample or not isinstance(model, ConsistencyFunction):
        return dict(options)
    end = {"sigma_min": model.sigma_min, **preset, **options}["sigma_min"]
    if end != model.sigma_min:
        raise ValueError(f"sigma_min must be that of model, {model.sigma_min:g}; got {end}")
    return {**options, "sigma_min": end}


def sample(
    sampler: Sampler,
    model: Model,
    x: Tensor,
    sigmas: Levels,
    key: noise.Key,
    options: Mapping[str, object],
) -> Result:
    """Run the sampler; its seed is `key`, if it takes one (those without noise need not)."""
    seed = {"seed": key} if _takes_seed(sampler) else {}
    return sampler(model, x, sigmas, **seed, **options)


def _takes_seed(sampler: Sampler) -> bool:
    try:
        parameters = inspect.signature(sampler).parameters.values()
    except ValueError:  # some callables have no signature to read
        return True
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)
