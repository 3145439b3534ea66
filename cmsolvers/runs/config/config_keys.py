"""One key of a configuration: its type, default, range and words, and how values are checked."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Union

from cmsolvers import checks as check
from cmsolvers.training.named_options import nearest

Table = Mapping[str, object]
"""Keys and values that are handed on as they are."""

NONE = "none"
"""What unsets a key that may be unset: TOML has no word for it."""

AUTO = "auto"
"""What is chosen where the run begins."""

MOST = 10**12
"""Largest number of anything that is counted."""

INFO = "key"
"""Where a field's `Key` lies in its metadata."""


@dataclass(frozen=True)
class Key:
    """What is known of a key besides its type and default.

    Attributes:
        text: what it decides, in words.
        least: smallest number.
        most: largest number.
        above: what a number must be above.
        below: what a number must be below.
        choices: the words that it may be; None: any.
        changes: whether a run may go on with another value.
        example: a value for the template, where the default is unset.
    """

    text: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    changes: bool = False
    example: object = None

    @property
    def range(self) -> str:
        """The range of numbers, in words; empty where there is none that anybody would leave."""
        most = None if self.most is None or self.most >= MOST else self.most
        parts = [
            (f"at least {self.least:g}" if self.least is not None else ""),
            (f"above {self.above:g}" if self.above is not None else ""),
            (f"at most {most:g}" if most is not None else ""),
            (f"below {self.below:g}" if self.below is not None else ""),
        ]
        return " and ".join(part for part in parts if part)


def key(default: Any, text: str, **known: Any) -> Any:
    """A dataclass field that is a key."""
    about = {INFO: Key(text, **known)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def key_of(field: dataclasses.Field[Any]) -> Key:
    """What is known of a field."""
    found: Key = field.metadata[INFO]
    return found


def default_of(field: dataclasses.Field[Any]) -> object:
    """The value of a key that is not given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def kinds_of(section: type, name: str) -> tuple[Any, ...]:
    """The types that a key may have, one or several."""
    hint = _hints(section)[name]
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


@cache
def _hints(section: Any) -> dict[str, Any]:
    """The types of a section's keys, which are written as text."""
    return typing.get_type_hints(section)


WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    type(None): "'none'",
}


_PLURALS = {str: "texts", int: "integers", float: "numbers"}


def _word(kind: Any) -> str:
    if kind in WORDS:
        return WORDS[kind]
    if typing.get_origin(kind) is tuple:
        entry = typing.get_args(kind)[0]
        return f"a list of {_PLURALS[entry]}"
    return "a table {name = ...}"


def checked(name: str, kinds: Sequence[Any], about: Key, value: object) -> object:
    """A value in the form that its type says.

    Args:
        name: of the key, with its section.
        kinds: types that it may have.
        about: its range and choices.
        value: as TOML gives it.

    Raises:
        TypeError: another type.
        ValueError: out of range, or another word than the choices.
    """
    if type(None) in kinds and (value is None or value == NONE):
        return None
    for kind in kinds:
        found = _fitting(name, kind, value)
        if found is not None:
            _check_range(name, about, found)
            return found
    wanted = " or ".join(_word(kind) for kind in kinds)
    if about.choices:
        wanted = f"one of {', '.join(map(repr, about.choices))}"
    hint = ": write it in quotes" if str in kinds and not isinstance(value, (dict, list)) else ""
    raise TypeError(f"{name} must be {wanted}; got {_shown(value)}{hint}")


def _fitting(name: str, kind: Any, value: object) -> object:
    """The value as the type, or None where it has another one."""
    if kind is bool:
        return value if isinstance(value, bool) else None
    if kind is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return _number(name, value)
    if kind is str:
        return value if isinstance(value, str) else None
    if typing.get_origin(kind) is tuple:
        return _list(kind, value)
    if isinstance(value, Mapping):
        return {str(entry): value[entry] for entry in value}
    return None


def _number(name: str, value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {check.describe(value)}")
    return number


def _list(kind: Any, value: object) -> object:
    if not isinstance(value, (list, tuple)):
        return None
    entries = typing.get_args(kind)
    if entries[-1] is not Ellipsis and len(entries) != len(value):
        return None
    wanted = (int, float) if entries[0] is float else entries[0]
    fits = all(isinstance(v, wanted) and not isinstance(v, bool) for v in value)
    return tuple(map(entries[0], value)) if fits else None


def _check_range(name: str, about: Key, value: object) -> None:
    if isinstance(value, str) and about.choices is not None and value not in about.choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, about.choices))}; got {value!r}"
            f"{nearest(value, about.choices)}"
        )
    if isinstance(value, str) and not value:
        raise ValueError(f"{name} must not be empty")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, (bool, str, Mapping)) or not isinstance(number, (int, float)):
            continue
        outside = (
            (about.least is not None and number < about.least)
            or (about.most is not None and number > about.most)
            or (about.above is not None and number <= about.above)
            or (about.below is not None and number >= about.below)
        )
        if outside:
            wanted = about.range if about.most is None else f"{about.least:g} to {about.most:g}"
            raise ValueError(f"{name} must be {wanted}; got {check.describe(number)}")


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return f"the list {list(value)!r}"[:80]
    if isinstance(value, bool):
        return str(value).lower()
    return check.describe(value)


class Section:
    """A section of a configuration: a frozen dataclass whose fields are keys.

    Attributes:
        section: its name.
        about: what it is for, a line.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range; the text names the key.
    """

    section: typing.ClassVar[str] = ""
    about: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            name = f"{self.section}.{field.name}"
            found = checked(name, kinds_of(type(self), field.name), key_of(field), value)
            object.__setattr__(self, field.name, found)
