"""What a sampler by name does with a model: its levels, its options, and one batch of it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import cmsolvers
from cmsolvers import noise
from cmsolvers.denoisers import FlowMap
from cmsolvers.engine import catalogue
from cmsolvers.processes import VP
from cmsolvers.processes.coordinates import coordinates_of
from cmsolvers.runs.sample import level_grids as grids
from cmsolvers.training.model_wrappers import Function
from cmsolvers.training.models import Model
from cmsolvers.training.named_options import check_options, known_name

SHORT = {
    "heun": "heun_pf_ode",
    "euler": "euler_pf_ode",
    "ddpm": "ddpm_ancestral",
    "em": "euler_maruyama",
    "consistency": "consistency_sample",
    "flow_map": "flow_map_sample",
}
"""Short names of samplers."""

OF_THE_RUN = frozenset(
    {"seed", "noise_sampler", "extra_args", "callback", "progress", "return_info", "check", "grad"}
    | {"check_nan", "trajectory", "start", "stop", "log_prob", "history"}
)
"""Options of samplers that the command decides on."""

STEPS = 18
"""Usual number of steps of samplers of a denoiser; functions that jump take 1."""


@dataclass(frozen=True)
class Plan:
    """A sampler that fits a model, with everything that decides on its samples but the seed.

    Attributes:
        sampler: its name in `cmsolvers`.
        levels: of all steps, in the model's coordinates; two for samplers with steps of their own,
            times of the process for solvers in time.
        schedule: its name; None where the levels were given.
        options: of the sampler.
        time: whether it solves the reverse SDE of `VP` in time.
        steps: how many; None where the levels were given, or the sampler chooses.
    """

    sampler: str
    levels: tuple[float, ...]
    schedule: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    time: bool = False
    steps: int | None = None

    @torch.no_grad()
    def draw(
        self,
        function: Function | Callable[..., Tensor],
        z: Tensor,
        key: noise.Key,
        extra_args: Mapping[str, Tensor],
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples of one batch, and the NFE of each.

        Args:
            function: the denoiser, consistency function or flow map, perhaps guided.
            z: unit noise [B, ...].
            key: seed and ids of the samples.
            extra_args: for the function.
            options: more of the sampler.

        Returns:
            x0 [B, ...] as the model sees data, and int64 [B].
        """
        sampler = getattr(cmsolvers, self.sampler)
        called = partial(
            sampler,
            **(dict(self.options) | dict(options or {})),
            seed=key,
            extra_args=dict(extra_args),
            return_info=True,
        )
        if self.time:
            process = VP()
            sde = process.reverse(process.score_of(function))
            start = z * float(process.sigma(self.levels[0]))
            x, info = called(sde, start, list(self.levels))
            x = x / float(process.alpha(self.levels[-1]))
        else:
            start = z * float(coordinates_of(function).sigma(self.levels[0]))
            x, info = called(function, start, list(self.levels))
        return x, torch.as_tensor(info.nfe, dtype=torch.int64).cpu().expand(len(z))


def fitting(model: Model) -> list[str]:
    """Names of the samplers that fit a model, the usual one first."""
    kind = model.spec.row.model
    if kind == "flow map" or isinstance(model.function, FlowMap):
        return ["flow_map_sample"]
    if kind == "consistency":
        return ["consistency_sample", "flow_map_sample"]
    found = [
        facts.name
        for facts in catalogue.SOLVERS.values()
        if facts.space in ("sigma", "time") and facts.name != "consistency_sample"
        if hasattr(cmsolvers, facts.name)
    ]
    return ["heun_pf_ode", *sorted(set(found) - {"heun_pf_ode"})]


def sampler_of(model: Model, name: str | None) -> str:
    """The sampler of a name or short name that fits a model; None is the usual one.

    Raises:
        ValueError: an unknown or empty name, or a sampler for another kind of model.
    """
    usual = fitting(model)
    if name is None:
        return usual[0]
    public = [each for each in catalogue.SOLVERS if hasattr(cmsolvers, each)]
    known_name("sampler", name, [*public, *SHORT])
    full = SHORT.get(name, name)
    if full == "consistency_sample" and isinstance(model.function, FlowMap):
        full = usual[0] if model.function.second is None else full
    if full not in usual:
        spec = model.spec
        some = ", ".join(usual[:5]) + (", ..." if len(usual) > 5 else "")
        raise ValueError(
            f"sampler must fit the model, {spec.row.about} ({spec.kind}): {some}; got {name!r}"
        )
    return full


def plan_of(
    model: Model,
    sampler: str | None = None,
    *,
    steps: int | None = None,
    levels: Sequence[float] | None = None,
    schedule: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Plan:
    """The plan of a sampler for a model.

    Args:
        model: what it samples.
        sampler: a name of `cmsolvers solvers` or of `SHORT`; None is the usual one.
        steps: how many; None is 18 for a denoiser and 1 for a function that jumps.
        levels: the levels themselves, in the model's coordinates, in place of steps and schedule.
            A 0 is added at the end where the sampler wants one.
        schedule: a name of `level_grids.SCHEDULES`; None is the usual one of the model.
        options: of the sampler and of the schedule.

    Raises:
        TypeError: an option that neither has.
        ValueError: an unknown name, a sampler or schedule that does not fit the model, numbers out
            of range.
    """
    name = sampler_of(model, sampler)
    facts = catalogue.SOLVERS[name]
    jumps = name in ("consistency_sample", "flow_map_sample")
    if levels is not None and (steps is not None or schedule is not None):
        raise ValueError("levels must be given without steps and schedule, which make levels")
    if facts.adaptive and steps is not None:
        raise ValueError(f"steps must be left out: {name} chooses its own (see rtol and atol)")
    named = None if levels is not None else grids.schedule_of(model, schedule)
    own, ours = _split(name, named, options or {})
    count = (1 if jumps else STEPS) if steps is None else steps
    if levels is not None:
        found = grids.checked_levels(model, levels)
    elif jumps:
        found = grids.few_levels(model, str(named), count, ours)
    elif facts.adaptive or facts.space == "time":
        found = grids.above_zero(model, str(named), count, ours)
    else:
        found = grids.grid(model, str(named), count, ours)
    if name == "consistency_sample":
        found = [level for level in found if level > 0]
        own.setdefault("sigma_min", model.function.sigma_min or 1e-4)
    elif name == "flow_map_sample":
        found = [*found, 0.0] if found[-1] else found
        if _has_one_time(model.function) and len(found) > 2:
            own.setdefault("gamma", 1.0)
    if facts.space == "time":
        path = coordinates_of(model.function)
        most = float(VP().sigma_hat(1.0))
        ratios = [min(float(path.ratio(level)), most) for level in found if level]
        found = [float(VP().t_of_sigma(ratio)) for ratio in ratios]
    if facts.adaptive:
        found = [found[0], found[-1]]
    told = None if levels is not None or facts.adaptive else count
    return Plan(name, tuple(found), named, own, facts.space == "time", told)


def _has_one_time(function: Function) -> bool:
    return not isinstance(function, FlowMap) or function.second is None


def _split(
    sampler: str, schedule: str | None, options: Mapping[str, object]
) -> tuple[dict[str, Any], dict[str, object]]:
    """Options of the sampler and of the schedule; the sampler's come first where both have one."""
    first = list(inspect.signature(getattr(cmsolvers, sampler)).parameters)[3:]
    own = [name for name in first if name not in OF_THE_RUN]
    ours = [] if schedule is None else grids.schedule_options(schedule)
    check_options(f"sampler {sampler}", options, [*own, *ours])
    return (
        {name: value for name, value in options.items() if name in own},
        {name: value for name, value in options.items() if name not in own},
    )


def option_values(given: Sequence[str]) -> dict[str, object]:
    """Options from "name=value": values are JSON where they can be, else text.

    Raises:
        ValueError: no "=", no name, or a name twice.
    """
    found: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"options must be name=value; got {text!r}")
        if name in found:
            raise ValueError(f"{name} must be given once; got it twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return found
