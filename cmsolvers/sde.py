"""SDEs as objects: a user's own, and the reverse SDE or probability-flow ODE of a process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from cmsolvers import _checks as check

Time = TypeVar("Time", float, Tensor)
ScoreFunction: TypeAlias = Callable[..., Tensor]


def exact(t: Any) -> Any:
    """A float as it is, a tensor in float64."""
    return t.double() if isinstance(t, Tensor) else float(t)


def maths(t: Any) -> Any:
    """The module with the elementary functions for t."""
    return torch if isinstance(t, Tensor) else math


def per_sample(value: Any, x: Tensor) -> Any:
    """A float as it is; a tensor [] or [B] made to broadcast against x, in the dtype of x."""
    if not isinstance(value, Tensor):
        return value
    return value.to(dtype=x.dtype).reshape(value.shape + (1,) * (x.ndim - value.ndim))


@runtime_checkable
class SDELike(Protocol):
    """What `euler_maruyama` integrates: dx = drift(x, t) dt + diffusion(t) dw, t of shape [B]."""

    def drift(self, x: Tensor, t: Any) -> Tensor:
        """The drift, shape of x."""

    def diffusion(self, t: Any) -> Any:
        """The diffusion: a number, [B], or the shape of x."""


@dataclass(frozen=True)
class SDE:
    """A user's SDE dx = drift(x, t) dt + diffusion dw, in the sense of Ito.

    Args:
        drift: `drift(x, t) -> Tensor` of the shape of x, with t of shape [B] in the dtype of x.
        diffusion: `diffusion(t)`, or `diffusion(x, t)` when `state_dependent`: a number, a tensor
            of shape [] or [B], or one of the shape of x, which multiplies the noise elementwise. 0
            makes an ODE.
        state_dependent: whether the diffusion reads the state.

    Raises:
        TypeError: drift or diffusion cannot be called.
    """

    drift: Callable[[Tensor, Any], Tensor]
    diffusion: Callable[..., Any]
    state_dependent: bool = False

    def __post_init__(self) -> None:
        check.function("drift", self.drift)
        check.function("diffusion", self.diffusion)
        check.flag("state_dependent", self.state_dependent)


class Linear(Protocol):
    """The part of a process that its reverse needs."""

    def drift_factor(self, t: Any) -> Any:
        """a(t) of the forward drift a(t) x."""

    def diffusion(self, t: Any) -> Any:
        """g(t)."""


@dataclass(frozen=True)
class ScoreSDE:
    """The reverse SDE or the ODE of a process: drift a(t) x + b(t) score(x, t), diffusion g(t).

    `terms(t)` gives (a, b, g) in float64, so that a solver folds the drift into its step and reads
    only the score.

    Source: Anderson, "Reverse-time diffusion equation models" (1982); Song et al. (2021), eq. 6
    and 13.
    """

    process: Linear
    score: ScoreFunction
    stochastic: bool

    def terms(self, t: Any) -> tuple[Any, Any, Any]:
        """(a, b, g): the drift's factors of x and of the score, and the diffusion."""
        g = self.process.diffusion(t)
        if self.stochastic:
            return self.process.drift_factor(t), -(g * g), g
        return self.process.drift_factor(t), -0.5 * g * g, 0.0 * g

    def drift(self, x: Tensor, t: Any) -> Tensor:
        """Forward drift less g^2 score (SDE) or g^2 score / 2 (ODE); t is a number or [B]."""
        a, b, _ = self.terms(t)
        times = t if isinstance(t, Tensor) and t.ndim else x.new_full((x.shape[0],), float(t))
        result: Tensor = per_sample(a, x) * x + per_sample(b, x) * self.score(x, times)
        return result

    def diffusion(self, t: Time) -> Time:
        """g(t), or 0 for the ODE."""
        return self.terms(t)[2]  # type: ignore[no-any-return]
