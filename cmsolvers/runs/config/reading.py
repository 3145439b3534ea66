"""Configurations from a TOML file and from `key=value` on the command line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from cmsolvers.runs.config.config_keys import kinds_of
from cmsolvers.runs.config.configuration import (
    AVERAGES,
    Config,
    homes,
    key_names,
    section_names,
)
from cmsolvers.runs.config.sections import SECTIONS
from cmsolvers.training.named_options import nearest

HOW = "`cmsolvers train --init > config.toml` makes one"


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a file, with some keys replaced.

    Args:
        path: a TOML file.
        overrides: texts `section.key=value`, the value as TOML has it; bare words are texts.

    Raises:
        OSError: no such file, or one that cannot be read.
        TypeError, ValueError: no TOML, an unknown name, a value that does not fit; the text names
            the file or the override.
    """
    tables = read_tables(path)
    given = list(overrides)
    try:
        made = Config.of(tables)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error
    return Config.of(overridden(tables, given)) if given else made


def read_tables(path: str | Path) -> dict[str, object]:
    """The tables of a TOML file.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: no TOML (with line and column), no UTF-8, or nothing in it.
    """
    place = Path(path)
    if place.is_dir():
        inside = place / "config.toml"
        hint = f"; it holds {inside}" if inside.is_file() else f"; {HOW}"
        raise IsADirectoryError(f"CONFIG must be a TOML file; {path} is a folder{hint}")
    try:
        raw = place.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"CONFIG must be a file; there is none at {path}: {HOW}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} must be UTF-8; line {line} is not") from error
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be TOML; {_first_low(str(error))}") from error
    if not found:
        raise ValueError(f"{path} must hold a configuration; it is empty: {HOW}")
    return found


def _first_low(text: str) -> str:
    return text[:1].lower() + text[1:]


# --- overrides -----------------------------------------------------------------------------------

_PLACE = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def overridden(tables: Mapping[str, object], overrides: Iterable[str]) -> dict[str, object]:
    """TOML's tables with values replaced; the tables themselves stay as they are.

    Raises:
        ValueError: no `section.key=value`, an unknown section, or a value that is no TOML.
    """
    found: dict[str, object] = _copied(tables)
    for text in overrides:
        place, equals, value = text.partition("=")
        place = place.strip()
        if not equals or not _PLACE.fullmatch(place):
            raise ValueError(
                f"after CONFIG there must be section.key=value, such as train.steps=500; "
                f"got {text!r}"
            )
        parts = place.split(".")
        _check_place(text, parts)
        _put(found, parts, _value(text, parts, value.strip()))
    return found


def _copied(tables: Mapping[str, object]) -> dict[str, object]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in tables.items()}


def _check_place(text: str, parts: list[str]) -> None:
    known = section_names()
    if parts[0] not in known:
        there = homes(parts[0] if len(parts) == 1 else parts[1])
        near = nearest(parts[0], known) if len(parts) > 1 else ""
        near = near or (f" (did you mean {' or '.join(there[:3])}?)" if there else "")
        raise ValueError(f"{text!r}: there is no section {parts[0]!r}{near}")
    if len(parts) == 1:
        raise ValueError(f"{text!r}: {parts[0]} is a section; one of its keys must be named")
    if parts[0] == AVERAGES or parts[1] not in key_names(SECTIONS[parts[0]]) or len(parts) == 2:
        return
    kinds = kinds_of(SECTIONS[parts[0]], parts[1])
    if all(kind in (bool, int, float, str, type(None)) for kind in kinds):
        raise ValueError(f"{text!r}: {'.'.join(parts[:2])} is no table, nothing is in it")


def _value(text: str, parts: list[str], raw: str) -> object:
    """A value as TOML has it; what is no TOML, or a key that takes texts alone, is a text."""
    own = SECTIONS.get(parts[0])
    if own is not None and len(parts) == 2 and parts[1] in key_names(own):
        kinds = set(kinds_of(own, parts[1])) - {type(None)}
        if kinds == {str} and not raw.startswith(('"', "'")):
            return raw
    if raw == "":
        raise ValueError(f"{text!r}: there must be a value after =")
    try:
        found = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError as error:
        if _NUMBER.fullmatch(raw):
            return float(raw)
        if raw.startswith(("[", "{", '"', "'")) or "\n" in raw:
            raise ValueError(f"{text!r}: {raw!r} is no TOML: {_first_low(str(error))}") from error
        return raw
    if len(found) != 1:
        raise ValueError(f"{text!r}: there must be one value after =")
    return found["value"]


def _put(tables: dict[str, object], parts: list[str], value: object) -> None:
    """Set a value deep in tables; a name on the way becomes a table with that name."""
    here = tables
    for part in parts[:-1]:
        below = here.get(part)
        if isinstance(below, str) and part not in SECTIONS:
            below = {"name": below}
        if not isinstance(below, dict):
            below = {}
        here[part] = below
        here = below
    here[parts[-1]] = value
