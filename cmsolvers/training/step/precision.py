"""Mixed precision: autocast around the loss, and the scale of losses in float16."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
GROWTH, BACKOFF, INTERVAL, START = 2.0, 0.5, 2000, 2.0**16
"""Of the scale: as `torch.amp.GradScaler` has them."""


class Precision:
    """What narrows the arithmetic of a loss, and keeps its gradient in float16's range.

    Args:
        name: "no", "bf16" or "fp16".
        device: where it runs.

    Attributes:
        scale: of the loss, float32 [], in "fp16"; None otherwise.
        growth: steps since the scale last changed, int32 [].
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._kind, self._dtype = device.type, DTYPES.get(name)
        self.scale: Tensor | None = None
        self.growth = torch.zeros((), dtype=torch.int32, device=device)
        if name == "fp16":
            self.scale = torch.full((), START, dtype=torch.float32, device=device)
        self._one = torch.ones((), dtype=torch.float32, device=device)

    def around(self) -> AbstractContextManager[object]:
        """The block in which a loss is computed."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._kind, dtype=self._dtype)

    def unscale(self, gradients: Sequence[Tensor]) -> Tensor:
        """Take the scale out of gradients, in place; 1.0 where one is not finite, float32 []."""
        found = torch.zeros_like(self._one)
        inverse = self._one if self.scale is None else self.scale.reciprocal()
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for gradient in gradients:
            numbers = torch.view_as_real(gradient) if gradient.is_complex() else gradient
            groups.setdefault((numbers.device, numbers.dtype), []).append(numbers)
        for members in groups.values():
            torch._amp_foreach_non_finite_check_and_unscale_(members, found, inverse)
        return found

    def update(self, found: Tensor) -> None:
        """Lower the scale after a gradient that is not finite, raise it after many that are."""
        if self.scale is not None:
            torch._amp_update_scale_(self.scale, self.growth, found, GROWTH, BACKOFF, INTERVAL)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {} if self.scale is None else {"scale": self.scale, "growth": self.growth}
