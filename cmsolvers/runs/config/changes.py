"""What differs between the configuration of a run and one that would go on with it."""

from __future__ import annotations

import dataclasses

from cmsolvers.runs.config.config_keys import key_of
from cmsolvers.runs.config.configuration import AVERAGES, Config
from cmsolvers.runs.config.sections import SECTIONS
from cmsolvers.runs.config.toml_text import toml_value


@dataclasses.dataclass(frozen=True)
class Change:
    """A key with another value.

    Attributes:
        key: with its section.
        before: its value in the run, None where it is unset.
        now: its value here.
        allowed: whether a run may go on with it.
    """

    key: str
    before: object
    now: object
    allowed: bool

    def __str__(self) -> str:
        return f"{self.key} was {_shown(self.before)} and is {_shown(self.now)}"


def changes(before: Config, now: Config) -> list[Change]:
    """All keys that differ, in the order of the sections."""
    found: list[Change] = []
    for name, kind in SECTIONS.items():
        mine, theirs = getattr(before, name), getattr(now, name)
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            one, other = getattr(mine, field.name), getattr(theirs, field.name)
            if not _same(one, other):
                allowed = key_of(field).changes
                found.append(Change(f"{name}.{field.name}", one, other, allowed))
    if not _same(before.averages, now.averages):
        found.append(Change(AVERAGES, dict(before.averages), dict(now.averages), False))
    return found


def _same(one: object, other: object) -> bool:
    """Whether two values are written alike: 1 and 1.0 are not, lists and tuples are."""
    if one is None or other is None:
        return one is other
    return toml_value(one) == toml_value(other)


def _shown(value: object) -> str:
    return "unset" if value is None else toml_value(value)
