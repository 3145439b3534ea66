"""How near to stationary a loss should be at an exact map; the cases are in `stationary_cases`.

Three laws:

- `Exactly`: the gradient is 0 to rounding in every batch, as where a teacher is exact and so is the
  derivative along its ODE.
- `OnAverage`: it is 0 within its Monte-Carlo error, as where one pair stands for the velocity.
- `Falling`: a discrete loss is off by a power of its step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cmsolvers.losses.evaluation.recipe import Loss
from support import loss_faults as faults
from support.loss_faults import Fault, Options
from support.stationary import exact_denoiser, exact_map


@dataclass(frozen=True, eq=False)
class Case:
    """A loss at an exact map.

    Attributes:
        loss: the recipe.
        model: the kind of `exact_map`, or what makes the model.
        options: of the loss.
        faults: each must be noticed.
        call: what is called in place of the loss, with its signature.
        batches: of independent data.
        size: samples in each.
    """

    loss: Loss
    model: str | Callable[[], Any]
    options: Options = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    call: Callable[..., Any] | None = None
    batches: int = 16
    size: int = 256

    def made(self) -> Any:
        """A fresh exact model."""
        return exact_map(self.model) if isinstance(self.model, str) else self.model()

    @property
    def name(self) -> str:
        """For pytest."""
        kind = self.model if isinstance(self.model, str) else "exact student"
        return f"{self.loss.__name__} of {kind}"


@dataclass(frozen=True, eq=False)
class Exactly(Case):
    """0 in every batch."""

    batches: int = 8
    size: int = 128


class OnAverage(Case):
    """0 within the Monte-Carlo error."""


@dataclass(frozen=True, eq=False)
class Falling(Case):
    """Of order `rate` in a step.

    Attributes:
        rate: what theory says.
        steps: descending.
        at: options of a step.
    """

    rate: float = 1.0
    steps: tuple[float, ...] = (1 / 16, 1 / 32, 1 / 64, 1 / 128)
    at: Callable[[float], Options] = lambda step: {}
    batches: int = 2
    size: int = 512


TAUGHT: Options = {"teacher": exact_denoiser}
TAUGHT_WELL = (faults.reversed_teacher, faults.misled_teacher)
TANGENTS = (faults.half_derivative, faults.still_time)
OF_PAIRS = (faults.fresh_noise, faults.reversed_velocity)


def option(name: str) -> Callable[[float], Options]:
    """The step of `Falling` is an option."""
    return lambda step: {name: step}
