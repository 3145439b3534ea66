"""What the coefficients of a denoiser depend on, as a value that can be compared and hashed."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from types import MethodType

from torch import nn

from cmsolvers.denoisers.scalings import EDMScalings, InProcess

CALLED: Hashable = ("called",)
"""Of a denoiser that is only called: nothing of it is settled before the call."""


class _Same:
    """Equal to itself alone; it holds the value, whose id therefore stays its own."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


class _ChangingError(Exception):
    """A part whose answers training changes."""


def signature_of(*parts: object) -> Hashable | None:
    """A tuple that is equal for parts that were made alike; None where a part may change its mind.

    Partials, bound methods and scalings compare by what they hold, everything else as it compares
    itself: a process by value, a user's function by identity.
    """
    try:
        return tuple(map(_key, parts))
    except _ChangingError:
        return None


def _key(value: object) -> Hashable:
    if isinstance(value, nn.Module):  # a learned c_noise
        raise _ChangingError
    if isinstance(value, partial):
        parts = value.func, *value.args, *value.keywords, *value.keywords.values()
    elif isinstance(value, MethodType):
        parts = value.__func__, value.__self__
    elif isinstance(value, InProcess):
        parts = value.process, value.target, value.c_noise
    elif isinstance(value, EDMScalings):
        parts = value.parts
    else:
        try:
            hash(value)
        except TypeError:
            return _Same(value)
        return value
    return tuple(map(_key, parts))
