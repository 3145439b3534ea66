"""What the coefficients of a denoiser depend on, as a value that can be compared and hashed."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from types import FunctionType, MethodType

import torch

from cmsolvers.denoisers.scalings import EDMScalings, InProcess

CALLED: Hashable = ("called",)
"""Of a denoiser that is only called: nothing of it is settled before the call."""


class _OtherError(Exception):
    """A part that the library does not know: its answers may change."""


def signature_of(*parts: object) -> Hashable | None:
    """A tuple that is equal for parts that were made alike; None where a part may change its mind.

    Numbers, and what the library itself defines, compare by value. A user's function may read
    anything, and a user's subclass compare as it likes: what was settled for it must not be kept.
    """
    try:
        return tuple(map(_key, parts))
    except _OtherError:
        return None


def _key(value: object) -> Hashable:
    parts: tuple[object, ...]
    if isinstance(value, partial):
        names = tuple(value.keywords)
        parts = value.func, len(value.args), names, *value.args, *value.keywords.values()
    elif isinstance(value, MethodType):
        parts = value.__func__, value.__self__
    elif type(value) is InProcess:
        parts = value.process, value.target, value.c_noise, value.own
    elif isinstance(value, EDMScalings) and _is_ours(type(value)):
        parts = type(value), *value.parts
    elif type(value) is tuple:
        parts = value
    elif value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return type(value), value
    elif isinstance(value, (FunctionType, type)):
        if not _is_ours(value):
            raise _OtherError
        return value
    elif _is_ours(type(value)) and type(value).__hash__ is not None:
        return value
    else:
        raise _OtherError
    return tuple(map(_key, parts))


def _is_ours(value: FunctionType | type) -> bool:
    return value.__module__.startswith("cmsolvers.") and not getattr(value, "__closure__", None)
