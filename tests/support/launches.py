"""Counting what a run launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cmsolvers import ops
from cmsolvers.ops import step


@dataclass(frozen=True)
class Seen:
    """One launch.

    Attributes:
        name: of the function, "weighted_step" or "scale_input".
        inputs: how many tensors the step reads besides the state.
        row: its weights.
        options: its keyword arguments.
    """

    name: str
    inputs: int
    row: Any
    options: dict[str, Any]


@contextmanager
def counted_launches() -> Iterator[list[Seen]]:
    """All launches of the runs inside.

    A run calls the compiled step directly where nothing speaks against it. Without that function it
    takes the same steps through `ops.weighted_step` and `ops.scale_input`, which are watched here.
    """
    seen: list[Seen] = []
    weighted, scale = ops.weighted_step, ops.scale_input

    def weighted_step(x: Any, inputs: Any, row: Any, **options: Any) -> Any:
        seen.append(Seen("weighted_step", len(inputs), row, options))
        return weighted(x, inputs, row, **options)

    def scale_input(x: Any, factor: Any, **options: Any) -> Any:
        seen.append(Seen("scale_input", 0, (factor,), options))
        return scale(x, factor, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "FAST", None)
        patch.setattr(ops, "weighted_step", weighted_step)
        patch.setattr(ops, "scale_input", scale_input)
        yield seen
