"""Configurations of trainings: a schema, TOML files, overrides, presets and a template."""

from cmsolvers.runs.config.changes import Change, changes
from cmsolvers.runs.config.config_keys import AUTO
from cmsolvers.runs.config.configuration import Config
from cmsolvers.runs.config.presets import preset, presets
from cmsolvers.runs.config.reading import overridden, read_config, read_tables
from cmsolvers.runs.config.toml_text import config_text, template, toml_value

__all__ = [
    "AUTO",
    "Change",
    "Config",
    "changes",
    "config_text",
    "overridden",
    "preset",
    "presets",
    "read_config",
    "read_tables",
    "template",
    "toml_value",
]
