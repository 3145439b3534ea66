"""What a public loss is: its recipe, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from cmsolvers import noise
from cmsolvers.losses.evaluation.network_calls import Model
from cmsolvers.losses.evaluation.output import LossOutput

Need: TypeAlias = Literal["required", "optional", "none"]


@dataclass(frozen=True)
class Recipe:
    """What a loss is, for tables and tests.

    Attributes:
        name: of the function.
        identity: "score", "eulerian", "lagrangian" or "semigroup".
        source: paper and equation.
        coordinates: that its default levels and weights are meant for.
        model: the kind of model: "denoiser", "consistency" (one time) or "flow map" (two).
        teacher: whether it needs a teacher.
        scheduled: whether it has an option `total` or `warmup`.
        any_mode: whether its teacher may be in training mode.
    """

    name: str
    identity: str
    source: str
    coordinates: str
    model: str
    teacher: Need
    scheduled: bool
    any_mode: bool = False


class Loss(Protocol):
    """A public loss."""

    __name__: str
    recipe: Recipe

    def __call__(
        self,
        model: Model,
        x0: Tensor,
        *,
        key: noise.SeedLike,
        step: int | Tensor,
        teacher: Model | None = None,
        target: Model | None = None,
        extra_args: Mapping[str, object] | None = None,
        reduction: str = "mean",
        **options: Any,
    ) -> LossOutput:
        """Evaluate; each loss documents its options."""
