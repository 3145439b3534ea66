"""A configuration: its sections, and what is said of names that none of them has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from cmsolvers.runs.config.config_keys import Section, Table
from cmsolvers.runs.config.data_keys import Data
from cmsolvers.runs.config.loss_keys import LossKeys, OptimizerKeys, ScheduleKeys
from cmsolvers.runs.config.model_keys import Init, ModelKeys, Network, Teacher
from cmsolvers.runs.config.run_keys import Checkpoints, Logging, Run, Sampling, Train
from cmsolvers.runs.config.sections import SECTIONS
from cmsolvers.training.named_options import nearest

AVERAGES = "averages"
"""The section whose keys are names that the user chooses."""

AVERAGES_TEXT = (
    "Averages of the weights, for sampling: one table for each name, with decay (and warmup), or "
    "sigma_rel for a power-function profile. Unset: ema, over a tenth of the run and at most 1,000 "
    "steps."
)
AVERAGES_EXAMPLE: dict[str, dict[str, object]] = {
    "ema": {"decay": 0.999, "warmup": True},
    "wide": {"sigma_rel": 0.1},
}


@dataclass(frozen=True)
class Config:
    """The configuration of a run; each section has the defaults of `sections`.

    Attributes:
        averages: name -> options of an average for sampling, see `building.averages_of`; empty is
            one with the name "ema".

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the text names the key.
    """

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: ModelKeys = field(default_factory=ModelKeys)
    network: Network = field(default_factory=Network)
    init: Init = field(default_factory=Init)
    teacher: Teacher = field(default_factory=Teacher)
    loss: LossKeys = field(default_factory=LossKeys)
    optimizer: OptimizerKeys = field(default_factory=OptimizerKeys)
    schedule: ScheduleKeys = field(default_factory=ScheduleKeys)
    averages: Mapping[str, Table] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    logging: Logging = field(default_factory=Logging)
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if not isinstance(self.averages, Mapping):
            raise TypeError(f"averages must be a section; got {self.averages!r}")
        for name, options in self.averages.items():
            if not isinstance(options, Mapping):
                raise TypeError(
                    f"averages.{name} must be a table such as {{decay = 0.999}}; got {options!r}"
                )

    @staticmethod
    def of(tables: Mapping[str, object]) -> Config:
        """The configuration that TOML's tables describe; what they leave out has its default.

        Raises:
            TypeError: a section that is no table, a value of the wrong type.
            ValueError: an unknown section or key; the text has the nearest ones. A value out of
                range.
        """
        made: dict[str, Any] = {}
        for name, values in tables.items():
            known = SECTIONS.get(name)
            if known is None and name != AVERAGES:
                raise ValueError(_unknown_section(name, values))
            if not isinstance(values, Mapping):
                raise TypeError(f"{name} must be a section, [{name}]; got {values!r}")
            if known is None:
                made[name] = {str(key): value for key, value in values.items()}
                continue
            for key in values:
                if key not in key_names(known):
                    raise ValueError(_unknown_key(name, key))
            made[name] = known(**values)
        return Config(**made)

    def tables(self) -> dict[str, dict[str, object]]:
        """Every key of every section that is set; `of` is the inverse."""
        found: dict[str, dict[str, object]] = {}
        for name in section_names():
            part = getattr(self, name)
            if isinstance(part, Section):
                values = {key: getattr(part, key) for key in key_names(type(part))}
                found[name] = {key: value for key, value in values.items() if value is not None}
            else:
                found[name] = dict(part)
        return found


def section_names() -> list[str]:
    """The sections in their order."""
    return [one.name for one in dataclasses.fields(Config)]


def key_names(section: type[Section]) -> list[str]:
    """The keys of a section in their order."""
    return [one.name for one in dataclasses.fields(section)]  # type: ignore[arg-type]


def homes(key: str) -> list[str]:
    """The keys of that name with their sections; else the nearest ones of all sections."""
    every = [f"{name}.{own}" for name, kind in SECTIONS.items() for own in key_names(kind)]
    same = [one for one in every if one.split(".")[1] == key]
    if same:
        return same
    names = sorted({one.split(".")[1] for one in every})
    near = get_close_matches(key, names, n=2, cutoff=0.75)
    return [one for name in near for one in every if one.split(".")[1] == name]


def _question(names: list[str]) -> str:
    return f" (did you mean {' or '.join(names[:3])}?)" if names else ""


def _unknown_section(name: str, value: object) -> str:
    known = section_names()
    if not isinstance(value, Mapping):
        text = f"every key must be in a section; {name!r} is in none"
        return text + (_question(homes(name)) or f"; sections are {', '.join(known)}")
    near = nearest(name, known) or _question(homes(name))
    return f"there is no section {name!r}{near}; sections are {', '.join(known)}"


def _unknown_key(section: str, key: str) -> str:
    own = key_names(SECTIONS[section])
    elsewhere = [one for one in homes(key) if one.split(".")[1] == key]
    near = _question(elsewhere) or nearest(key, own) or _question(homes(key))
    if not near and "options" in own:
        near = f" (an option of the {section}'s own is {section}.options.{key})"
    shown = key if re.fullmatch(r"[\w-]+", key) else repr(key)
    return f"there is no key {section}.{shown}{near}; {section} has {', '.join(own)}"
