"""Configurations as TOML: values, whole configurations, and the commented template."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Mapping

from cmsolvers.runs.config.config_keys import Key, key_of
from cmsolvers.runs.config.configuration import (
    AVERAGES,
    AVERAGES_EXAMPLE,
    AVERAGES_TEXT,
    Config,
    section_names,
)
from cmsolvers.runs.config.presets import preset, presets
from cmsolvers.runs.config.sections import SECTIONS

WIDTH = 96
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_value(value: object) -> str:
    """A value as TOML writes it on one line.

    Raises:
        TypeError: a value that TOML has no form for.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's; DEL is the one that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value)
        return text if re.search(r"[.en]", text) else text + ".0"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, Mapping):
        entries = [f"{_name(str(k))} = {toml_value(v)}" for k, v in value.items()]
        return "{" + ", ".join(entries) + "}" if entries else "{}"
    if hasattr(value, "isoformat"):  # dates and times
        return str(value.isoformat())
    raise TypeError(f"a configuration cannot hold {value!r}")


def _name(key: str) -> str:
    return key if _BARE.fullmatch(key) else toml_value(key)


def config_text(config: Config, chosen: Mapping[str, object] | None = None) -> str:
    """A configuration as TOML: every key that is set.

    Args:
        config: the configuration.
        chosen: key -> what stands for its "auto", or for it where it is unset; goes into comments.
    """
    chosen = dict(chosen or {})
    lines: list[str] = []
    for section, values in config.tables().items():
        lines += ["", f"[{section}]"]
        for key, value in values.items():
            made = chosen.get(f"{section}.{key}")
            note = f"  # {_plain(made)}" if made is not None else ""
            lines.append(f"{_name(key)} = {toml_value(value)}{note}")
        for place, made in chosen.items():
            part, _, key = place.partition(".")
            if part == section and key not in values:
                lines.append(f"# {key}: {_plain(made)}")
    return "\n".join(lines[1:]) + "\n"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else toml_value(value)


def template(name: str | None = None) -> str:
    """A commented configuration with every key: a preset, or the defaults.

    Raises:
        ValueError: no such preset.
    """
    config = Config() if name is None else preset(name)
    init = "--init" if name is None else f"--init {name}"
    about = [] if name is None else [presets()[name], ""]
    head = [
        *about,
        f"Made by `cmsolvers train {init}`; `cmsolvers train FILE` runs it, and any key can be "
        "given after FILE: train.steps=500. Paths are relative to the folder where the command "
        "runs. A run goes on with other values of keys that have (*), and of no others. "
        f"{'P' if name is None else 'Other p'}resets: "
        f"{', '.join(one for one in presets() if one != name)}.",
    ]
    lines = [line for text in head for line in _comment(text)]
    for section in section_names():
        lines.append("")
        if section == AVERAGES:
            lines += [*_comment(AVERAGES_TEXT), f"[{AVERAGES}]"]
            lines += [f"{_name(k)} = {toml_value(v)}" for k, v in config.averages.items()]
            for key, value in AVERAGES_EXAMPLE.items():
                if key not in config.averages:
                    lines.append(f"# {key} = {toml_value(value)}")
            continue
        lines += [*_comment(SECTIONS[section].about), f"[{section}]"]
        part = getattr(config, section)
        for field in dataclasses.fields(SECTIONS[section]):  # type: ignore[arg-type]
            about_key = key_of(field)
            lines += _comment(_words(about_key))
            value = getattr(part, field.name)
            if value is None:
                lines.append(f"# {field.name} = {toml_value(about_key.example)}")
            else:
                lines.append(f"{field.name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def _words(key: Key) -> str:
    """What is said of a key: its text, its choices and its range."""
    text = key.text
    if key.choices and not all(choice in text for choice in key.choices):
        text += f" One of {', '.join(map(repr, key.choices))}."
    if key.range:
        text += f" {key.range[0].upper()}{key.range[1:]}."
    if key.changes:
        text += " (*)"
    return text


def _comment(text: str) -> list[str]:
    if not text:
        return ["#"]
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False)]
