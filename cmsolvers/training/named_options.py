"""Objects from plain data: a name of a table, and options by the signature of what it names."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from cmsolvers import checks as check

IMPORT = "import:"
"""How a name of the user's own begins, as in "import:package.module:Class"."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are nearest, as a question in brackets, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(one) for one in found)}?)" if found else ""


def known_name(what: str, name: object, known: Collection[str]) -> str:
    """A name of a table.

    Raises:
        TypeError: no text.
        ValueError: an unknown name; the text has the nearest ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a name; got {check.describe(name)}")
    if name not in known:
        raise ValueError(
            f"{what} must be one of {', '.join(sorted(known))}; got {name!r}{nearest(name, known)}"
        )
    return name


def check_options(what: str, given: Mapping[str, object], known: Collection[str]) -> None:
    """Check that options have known names.

    Raises:
        TypeError: an unknown one; the text has the nearest names.
    """
    for name in given:
        if name not in known:
            has = ", ".join(sorted(known)) or "none"
            raise TypeError(f"{what} has no option {name!r}{nearest(name, known)}; it has {has}")


def option_names(made: Callable[..., object]) -> list[str]:
    """Names of what a callable or class takes by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(made).parameters.values()
    return [p.name for p in parameters if p.kind in kinds]


def called_with(what: str, made: Callable[..., Any], options: Mapping[str, object]) -> Any:
    """`made(**options)` after a check of the names.

    Raises:
        TypeError: an unknown option, or one that is missing.
        ValueError: what `made` refuses, with `what` before it.
    """
    parameters = inspect.signature(made).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_options(what, options, option_names(made))
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in options
    ]
    if needed:
        raise TypeError(f"{what} needs the option {needed[0]!r}; got {sorted(options) or 'none'}")
    try:
        return made(**options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from error


def imported(what: str, name: str) -> Any:
    """What "import:package.module:Name" names.

    Raises:
        ValueError: another form of name.
        ImportError: no such module, or one that cannot be imported; no such name in it.
    """
    place, found, attribute = name.removeprefix(IMPORT).partition(":")
    if not name.startswith(IMPORT) or not found or not place or not attribute:
        raise ValueError(f"{what} must be 'import:package.module:Name'; got {name!r}")
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise ImportError(
            f"{what}: module {place!r} of {name!r} cannot be imported: {error}"
        ) from error
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ImportError(
                f"{what}: module {place!r} has no {attribute!r}{nearest(part, dir(value))}"
            )
        value = getattr(value, part)
    return value


def table_of(what: str, value: object) -> tuple[str, dict[str, object]]:
    """(name, options) of a name, or of a table {name = ..., option = ...}.

    Raises:
        TypeError: neither; a table without a name.
    """
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{what} must be a name or a table with a name; got {check.describe(value)}"
        )
    options = {str(key): entry for key, entry in value.items()}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise TypeError(f"{what} must have a name, as in {{name = ...}}; got {sorted(options)}")
    return name, options
