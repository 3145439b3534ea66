"""The samples under way, each with its own time, step size and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cmsolvers.engine.adaptive.control import Memory
from cmsolvers.engine.live import Held

_COUNTS = ("leg", "failure", "accepted", "rejected", "nfe")
_CONTROL = ("ids", "t", "h", "retry", *_COUNTS)


@dataclass
class Lanes:
    """Per-sample state of a run; row b of everything belongs to sample ids[b] of the batch.

    Attributes:
        ids: int64 [b], places in the whole batch, on the control device (as all that follow).
        t: float64 [b], where the sample is.
        h: float64 [b], positive: the size of the step to try next.
        leg: int64 [b], how many stops have been reached.
        retry: bool [b], whether the step before was rejected: `first` is still known then.
        failure: int64 [b], 0 or why the sample stopped.
        accepted, rejected, nfe: int64 [b], counts.
        memory: of the step size control.
        x: [b, ...], on the device of the states.
        first: [b, ...], the model's output at x; None before it is known.
        previous: [b, ...], a state that the error of the next step is measured against, if any.
    """

    ids: Tensor
    t: Tensor
    h: Tensor
    leg: Tensor
    retry: Tensor
    failure: Tensor
    accepted: Tensor
    rejected: Tensor
    nfe: Tensor
    memory: Memory
    x: Tensor
    first: Held | None = None
    previous: Tensor | None = None

    def select(self, index: Tensor) -> Lanes:
        """The rows of an index on the control device."""
        there = index.to(self.x.device)
        # Indexing keeps the memory format, index_select does not.
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in _CONTROL},
            memory=tuple(m[index] for m in self.memory),
            x=self.x[there],
            first=None if self.first is None else Held(self.first.tensor[there]),
            previous=None if self.previous is None else self.previous[there],
        )


def start(x: Tensor, t: float, device: torch.device) -> Lanes:
    """All samples at time t."""

    def whole(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((x.shape[0],), value, dtype=dtype, device=device)

    zero: dict[str, Any] = {name: whole(0, torch.int64) for name in _COUNTS}
    return Lanes(
        **zero,
        ids=torch.arange(x.shape[0], device=device),
        t=whole(t, torch.float64),
        h=whole(0.0, torch.float64),
        retry=whole(False, torch.bool),
        memory=(),
        x=x,
    )


def join(parts: Sequence[Lanes], name: str) -> Tensor:
    """The rows of an attribute over several lanes, in the order of the whole batch."""
    order = torch.argsort(torch.cat([part.ids for part in parts]))
    rows = torch.cat([getattr(part, name) for part in parts])
    return rows[order.to(rows.device)]


def choose(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where a sample is accepted, `old` elsewhere; NaN on the other side does no harm."""
    there = accept.to(new.device).reshape(-1, *[1] * (new.dim() - 1))
    return torch.where(there, new, old.to(new.dtype))
