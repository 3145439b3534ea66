"""What the looks at the models of a loss share."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from cmsolvers.denoisers.composed import Composed
from cmsolvers.denoisers.flow_map_base import FlowMap
from cmsolvers.denoisers.preconditioning import Preconditioned
from cmsolvers.engine.mistakes.glances import Glance
from cmsolvers.engine.mistakes.once import Once
from cmsolvers.processes.wrappers import layers


def is_known(model: object, *, partials: bool = False) -> bool:
    """Whether the type says what it is, below what wraps a module; `partials`: or a function."""
    known = (Preconditioned, Composed, FlowMap)
    return any(isinstance(layer, known) for layer in layers(model, partials=partials))


def look(once: Once, measure: Callable[[], Tensor], judge: Callable[[Glance], bool]) -> None:
    """Judge what `measure` finds, as soon as it is known; nothing where it fails.

    A model may refuse the level of the look, which no step of the loss wants.
    """
    try:
        found = Glance(measure())
    except Exception:
        return
    once.later(lambda: judge(found))


def by_how_much(change: float, size: float, what: str) -> str:
    """What a model does to data of a size that it changes by so much, in words."""
    if math.isfinite(change):
        return f"changes {what} by {100 * change / size:.0f} %"
    return "returns what is not finite"
