"""Tensors in nests of dicts, lists and tuples: found, replaced, compared with a captured nest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from cmsolvers import checks as check


def _children(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", entry) for key, entry in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"{name}[{i}]", entry) for i, entry in enumerate(value))


def tensors_in(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors in a nest of dicts, lists and tuples, with their places."""
    if isinstance(value, Tensor):
        yield name, value
    for place, entry in _children(name, value):
        yield from tensors_in(place, entry)


def with_tensors(name: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nest with other tensors."""
    if isinstance(value, Tensor):
        return tensors[name]
    entries = [with_tensors(place, entry, tensors) for place, entry in _children(name, value)]
    if isinstance(value, Mapping):
        return dict(zip(value, entries, strict=True))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*entries)
    return type(value)(entries) if type(value) in (list, tuple) else value


def check_like(given: object, captured: object, name: str) -> None:
    """Check that a nest fits the captured one: tensors of the same kind, everything else equal.

    Raises:
        TypeError, ValueError: names the place that does not fit.
    """
    if isinstance(captured, Tensor):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, as captured; got {check.describe(given)}")
        if (given.shape, given.dtype, given.device) != (
            captured.shape,
            captured.dtype,
            captured.device,
        ):
            raise ValueError(
                f"{name} must be {check.describe(captured)}, as captured; "
                f"got {check.describe(given)}"
            )
        return
    old, new = dict(_children(name, captured)), dict(_children(name, given))
    if not old and not new:
        if type(given) is not type(captured) or given != captured:
            raise ValueError(
                f"{name} must be {check.describe(captured)}, as captured; "
                f"got {check.describe(given)}"
            )
        return
    for place in new:
        if place not in old:
            raise ValueError(f"{place} is new; it was not there at the capture")
    for place, entry in old.items():
        if place not in new:
            raise ValueError(f"{place} is missing; it was there at the capture")
        check_like(new[place], entry, place)
