"""Buffers as they were before a step, for steps that are skipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeptBuffers:
    """Copies of a network's buffers: a pass in training mode moves running statistics.

    Args:
        network: whose buffers these are. Of one without any nothing is kept.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parts = [part for part in network.modules() if part._buffers]
        self._kept: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def keep(self) -> None:
        """Copy them as they are now."""
        self._kept = [
            (part, name, held, held.clone())
            for part in self._parts
            for name, held in part._buffers.items()
            if held is not None
        ]

    @torch.no_grad()
    def restore(self, bad: Tensor | bool = True) -> None:
        """Put them back, where `bad` is True or, as a tensor, not 0; nothing is read for that."""
        for part, name, held, before in self._kept:
            now = part._buffers[name]
            if isinstance(bad, Tensor) and now is not None:
                before = torch.where(bad != 0, before, now)
            elif not bad:
                continue
            held.copy_(before)
            part._buffers[name] = held
        self._kept = []
