"""What a denoiser is to the library: a type for signatures, checked by type checkers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from torch import Tensor

__all__ = ["Arguments", "Denoiser", "Extra", "Scalar"]

Arguments: TypeAlias = dict[str, Any]
"""Keyword arguments to call a network or a denoiser with."""

Extra: TypeAlias = Mapping[str, Any]
"""The same where they are only read."""

Scalar: TypeAlias = Any
"""A float, or a float64 tensor of shape [] or [B] with one value per sample. The same formulas take
and return both; a union would make every caller that knows which one it has say so again."""


class Denoiser(Protocol):
    """A denoiser `D(x, sigma, **extra_args) -> x0`.

    Any callable is one whose first two parameters are x [B, ...] and sigma [B], both in Karras
    coordinates or in those that its attribute `coordinates` names ("flow" or a `Process`), and that
    returns the expected clean data in the shape of x: a function, a network, a wrapper of
    `cmsolvers.denoisers`. It needs no further parameters; it gets those that the caller of a
    sampler hands in as `extra_args`.
    """

    def __call__(self, x: Tensor, sigma: Tensor, /, *args: Any, **extra_args: Any) -> Tensor:
        """E[x0 | x], the shape of x."""
