"""Docstrings of functions that share their arguments, each complete by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable[..., object])


def documented(shared: str, output: str) -> Callable[[_Function], _Function]:
    """Put the shared text, with this {output} in it, in the place of "(arguments)"."""

    def fill(function: _Function) -> _Function:
        if function.__doc__ is not None:  # it is None under python -OO
            text = inspect.cleandoc(function.__doc__)
            function.__doc__ = text.replace("(arguments)", shared.format(output=output))
        return function

    return fill
