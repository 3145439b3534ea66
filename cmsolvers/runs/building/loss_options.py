"""Options of losses from plain data, by what the loss's own signature says that they are."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmsolvers import checks as check
from cmsolvers import losses
from cmsolvers.losses.times.distribution import Distribution
from cmsolvers.processes import DDPM
from cmsolvers.runs.building import loss_names as names
from cmsolvers.training.model_wrappers import chain_of
from cmsolvers.training.named_options import (
    IMPORT,
    called_with,
    imported,
    known_name,
    option_names,
    table_of,
)
from cmsolvers.training.spec import Spec

LABELS = "labels"
"""The keyword argument of networks that takes labels."""

LEARNED, ADAPTIVE, NONE = "learned", "adaptive", "none"
"""Words for a weight that is trained, a balance of gradients, and None, which TOML lacks."""

SHARED = ("share", "start")
"""Options that a loss and its distribution must agree on."""

WARMUP_SHARE = 5
"""A warm-up is at most a fifth of the run."""


@dataclass(frozen=True)
class Setting:
    """What options are filled in from.

    Attributes:
        spec: of the model that is trained.
        total: training steps in all.
        teacher: the spec of its teacher.
    """

    spec: Spec
    total: int
    teacher: Spec | None = None

    def filled(self, made: Callable[..., Any], options: Mapping[str, object]) -> dict[str, object]:
        """Options with the numbers of the run in place of those that were not given."""
        spec = self.spec
        usual: dict[str, object] = {"total": self.total, "sigma_data": spec.sigma_data}
        if spec.row.coordinates != "flow" and made is not losses.AnglePairs:
            usual |= {"sigma_min": spec.sigma_min, "sigma_max": spec.sigma_max}
        if self.teacher is not None and self.teacher.row.coordinates != "flow":
            # At t = 1 of a flow nothing is left of the data, which other paths do not reach.
            usual["largest"] = self.teacher.sigma_max / (1.0 + self.teacher.sigma_max)
        own = option_names(made)
        return {name: value for name, value in usual.items() if name in own} | dict(options)

    def named(self, what: str, value: object, table: names.Table) -> Any:
        """What a name, or a table with a name, stands for."""
        name, options = table_of(what, value)
        if name.startswith(IMPORT):
            found = imported(what, name)
            return called_with(f"{what} {name}", found, options) if options else found
        made = table[known_name(what, name, table)]
        return called_with(f"{what} {name}", made, self.filled(made, options))


def times_of(value: object, setting: Setting, shared: Mapping[str, object] | None = None) -> Any:
    """A distribution of levels from plain data.

    `total`, `sigma_min` and `sigma_max` are those of the run where they are not given; the option
    `stages` of "ect_pairs" is the number of stages in the whole run; the process of "chain_pairs"
    is that of the model.

    Args:
        value: a name, a table, or a `Distribution` whose numbers were not given but are defaults.
        setting: of the run.
        shared: options of the loss, of which those of `SHARED` hold for its distribution too.

    Raises:
        ImportError, TypeError, ValueError: no such distribution, or options that it does not have.
    """
    if isinstance(value, Distribution):
        value = described_times(value)
    name, options = table_of("times", value)
    if name.startswith(IMPORT):
        return called_with(f"times {name}", imported("times", name), options)
    known_name("times", name, names.DISTRIBUTIONS)
    made = names.FROM_GRIDS.get(name, names.DISTRIBUTIONS[name])
    own = option_names(made)
    for option in SHARED:
        if option in own and option in (shared or {}):
            options.setdefault(option, (shared or {})[option])
    if made is losses.ECTPairs:
        options = _stages(options, setting.total)
    if "gap" in options and made is losses.TruncatedPairs:
        options["gap"] = _gap(options["gap"], setting)
    if made is losses.ChainPairs:
        process = options.get("process", setting.spec.wrapper.get("process"))
        if process is not None:
            options["process"] = process if isinstance(process, DDPM) else chain_of(process)
    return called_with(f"times {name}", made, setting.filled(made, options))


def _stages(options: Mapping[str, object], total: int) -> dict[str, object]:
    found = dict(options)
    if "stages" in found:
        if "stage_steps" in found:
            raise TypeError("times ect_pairs takes stages or stage_steps; got both")
        found["stage_steps"] = math.ceil(total / check.count("stages", found.pop("stages")))
    return found


def _gap(value: object, setting: Setting) -> object:
    if isinstance(value, Mapping) and "name" not in value:
        value = {"name": "ect_pairs", **value}
    gap = times_of(value, setting)
    if not isinstance(gap, losses.ECTPairs):
        raise ValueError(f"gap must be ect_pairs; got {type(gap).__name__}")
    return gap


def described_times(default: Any) -> dict[str, object]:
    """A default of a recipe as plain data: what differs from its class's own defaults."""
    name = next(key for key, kind in names.DISTRIBUTIONS.items() if kind is type(default))
    if name in names.FROM_GRIDS:
        return {"name": name}
    usual = type(default)()
    own = [field.name for field in dataclasses.fields(default) if field.init]
    differing = {key: getattr(default, key) for key in own}
    return {"name": name} | {k: v for k, v in differing.items() if v != getattr(usual, k)}


def option_of(name: str, parameter: inspect.Parameter, value: object, setting: Setting) -> Any:
    """An option of a loss from plain data, by the annotation of its parameter.

    Raises:
        ImportError, TypeError, ValueError: a value of the wrong kind, an unknown name.
    """
    text = _annotation(parameter)
    kinds = [part.strip() for part in text.split(" | ")]
    if value == NONE and "None" in kinds:
        return None
    for marker, table in _TABLES.items():
        if marker in kinds:
            if "float" in kinds and isinstance(value, (int, float)):
                return check.finite(name, value)
            return setting.named(name, value, table)
    if text.startswith("Callable["):  # a weight that is trained along
        if value == LEARNED:
            return LEARNED
        raise ValueError(f"{name} must be 'learned' or 'none'; got {value!r}")
    if "Guidance" in kinds:
        return _guidance(value, setting)
    if "GuidanceInputs" in kinds:
        return _labelled(value, losses.GuidanceInputs, setting)
    if "ScaledVelocity" in kinds:
        return _scaled(value, setting)
    if "TeacherStep" in kinds:
        if isinstance(value, str) and value.startswith(IMPORT):
            return imported(name, value)
        return check.choice(name, value, ("euler", "heun"))
    return _plain(name, text, kinds, value)


def _annotation(parameter: inspect.Parameter) -> str:
    """An annotation as it is written; without one, the type of the default."""
    given = parameter.annotation
    if isinstance(given, str):
        return given
    return inspect.formatannotation(type(parameter.default) if given is parameter.empty else given)


_WORDS = {"str", "Method", "StartMethod"}
"""Types whose values are words, which the loss itself checks."""

SINGLE_LEVELS: names.Table = {
    name: kind for name, kind in names.DISTRIBUTIONS.items() if not name.endswith(("pairs", "ends"))
}
"""Distributions of the level of a further term; one that gives pairs is refused by the loss."""

_TABLES: dict[str, names.Table] = {
    "Between": names.DISTANCES,
    "Norm": names.NORMS,
    "LevelWeight": names.LEVEL_WEIGHTS,
    "PairWeight": names.PAIR_WEIGHTS,
    "TangentRule": names.TANGENTS,
    "Schedule": names.SCHEDULES,
    "Distribution[Tensor]": SINGLE_LEVELS,
    "Halfway": names.HALFWAY,
}


def _plain(name: str, text: str, kinds: Sequence[str], value: object) -> object:
    """A number, a text, a list or a flag."""
    if "Tensor" in kinds:
        if "float" in kinds and value == ADAPTIVE:
            return ADAPTIVE
        if "float" not in kinds:
            raise TypeError(f"{name} must be left out: it is a tensor, which settings cannot give")
    if "bool" in kinds:
        return check.flag(name, value)
    if isinstance(value, (list, tuple)):
        if any("tuple[" in kind or "Sequence[" in kind for kind in kinds):
            return tuple(check.floats(name, list(value)))
    elif isinstance(value, str):
        if not _WORDS.isdisjoint(kinds):
            return value
    elif isinstance(value, int) and not isinstance(value, bool):
        if "int" in kinds or "float" in kinds:
            return value
    elif isinstance(value, float) and "float" in kinds:
        return check.finite(name, value)
    raise TypeError(f"{name} must be {text}; got {check.describe(value)}")


def null_of(what: str, spec: Spec) -> int:
    """The label that says nothing.

    Raises:
        ValueError: the model has none.
    """
    if spec.null is None:
        raise ValueError(
            f"{what} needs labels, one of which says nothing; the model has "
            f"classes = {spec.classes}, null_label = {spec.null_label}"
        )
    return spec.null


def _guidance(value: object, setting: Setting) -> Any:
    if isinstance(value, Mapping) and "name" not in value:
        value = {"name": "guidance", **value}
    name, options = table_of("guidance", value)
    return _labelled(options, names.GUIDANCE[known_name("guidance", name, names.GUIDANCE)], setting)


def _labelled(value: object, made: Callable[..., Any], setting: Setting) -> Any:
    """A guidance of labels, with their name and null filled in."""
    if not isinstance(value, Mapping):
        raise TypeError(f"guidance must be a table; got {check.describe(value)}")
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
    options |= {"name": LABELS, "null": null_of("guidance", setting.spec)}
    found = called_with("guidance", made, options)
    if isinstance(found, losses.GuidanceInputs):
        require_inputs(setting.spec, found.inputs)
    return found


def _scaled(value: object, setting: Setting) -> Any:
    scale = value.get("scale", 1.0) if isinstance(value, Mapping) else value
    if isinstance(value, Mapping):
        called_with("guidance", lambda scale=1.0: scale, value)
    null_of("guidance", setting.spec)
    return losses.ScaledVelocity(check.positive("guidance.scale", scale), {LABELS: None})


def require_inputs(spec: Spec, wanted: Sequence[str]) -> None:
    """ValueError where the network does not read numbers that a loss hands to it."""
    missing = [name for name in wanted if name not in spec.inputs]
    if missing:
        raise ValueError(
            f"the network must read {missing[0]!r}, which the loss hands to it: inputs = "
            f"{list(wanted)}; got {list(spec.inputs)}"
        )
