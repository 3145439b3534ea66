"""Elementary functions of a float or of a tensor, so that one formula serves both.

A float stays a float; a tensor becomes float64. So each formula of a process is written once, and
its types say that alpha(float) is a float and alpha(Tensor) a Tensor.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar, cast, overload

import torch
from torch import Tensor

Time = TypeVar("Time", float, Tensor, float | Tensor)
"""A time or a level: a function of it returns the same kind."""


class Function(Protocol):
    """A real function of one variable."""

    @overload
    def __call__(self, t: float, /) -> float: ...
    @overload
    def __call__(self, t: Tensor, /) -> Tensor: ...


class Functions(Protocol):
    """What `math` and `torch` have under the same names."""

    asinh: Function
    atan: Function
    cos: Function
    exp: Function
    expm1: Function
    log: Function
    log1p: Function
    sin: Function
    sinh: Function
    sqrt: Function
    tan: Function


_OF_FLOATS = cast(Functions, math)
_OF_TENSORS = cast(Functions, torch)


def maths(t: float | Tensor) -> Functions:
    """The module with the elementary functions for t: `math` or `torch`."""
    return _OF_TENSORS if isinstance(t, Tensor) else _OF_FLOATS


@overload
def exact(t: Tensor) -> Tensor: ...
@overload
def exact(t: float) -> float: ...
def exact(t: float | Tensor) -> float | Tensor:
    """A number as a float, a tensor in float64."""
    return t.double() if isinstance(t, Tensor) else float(t)


@overload
def ratio(over: Tensor, under: Tensor) -> Tensor: ...
@overload
def ratio(over: float, under: float) -> float: ...
@overload
def ratio(over: float, under: Tensor) -> Tensor: ...
@overload
def ratio(over: Tensor, under: float) -> Tensor: ...
def ratio(over: float | Tensor, under: float | Tensor) -> float | Tensor:
    """The quotient; a float over 0 is infinite, as it is for tensors."""
    if isinstance(under, float) and under == 0.0:
        return math.copysign(math.inf, over)
    return over / under


@overload
def broadcastable(value: Tensor, x: Tensor) -> Tensor: ...
@overload
def broadcastable(value: float, x: Tensor) -> float: ...
def broadcastable(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A float as it is; a tensor [] or [B] in the dtype of x, shaped to broadcast against x.

    Raises:
        ValueError: a tensor [n] for a batch of another size.
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1 and value.shape[0] != x.shape[0]:
        raise ValueError(
            f"time or level must have shape [] or [B] = [{x.shape[0]}]; got {list(value.shape)}"
        )
    return value.to(dtype=x.dtype).reshape(value.shape + (1,) * (x.ndim - value.ndim))
