"""What wraps a model: for many devices, for a compiler, with arguments bound, as a method."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

_MOST = 8  # wrappers around one model


def wrapped_in(model: object, *, partials: bool = False) -> object | None:
    """What a wrapper holds; None of what wraps nothing.

    `_orig_mod` of a compiled module, `module` of `DistributedDataParallel`, averages and their
    like, and with `partials` the function of a `functools.partial`.
    """
    if isinstance(model, partial):
        return model.func if partials else None
    compiled = getattr(model, "_orig_mod", None)  # such a module hands on all other attributes
    return getattr(model, "module", None) if compiled is None else compiled


def layers(model: object, *, partials: bool = False) -> Iterator[object]:
    """A model, what it wraps, what that wraps, and so on; see `wrapped_in`."""
    for _ in range(_MOST):
        yield model
        model = wrapped_in(model, partials=partials)
        if model is None:
            return


def owner_of(function: object) -> object:
    """The object whose bound method this is; anything else is itself."""
    return getattr(function, "__self__", function)
