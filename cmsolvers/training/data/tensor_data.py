"""Data in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.data.class_labels import checked_labels
from cmsolvers.training.data.fingerprints import of_tensors
from cmsolvers.training.data.pixel_scale import Scale
from cmsolvers.training.data.stream_places import augmentation


class TensorData:
    """Samples in a tensor, on any device and of any floating dtype, which batches keep.

    Args:
        x: [n, ...] as models see them.
        labels: integers [n]; kept where x is.
        scale: from x back to pixels.
        flip: mirror each image left to right with probability 1/2, a function of (seed, step,
            position). For x of shape [n, C, H, W].
        classes: how many there are; None: the largest label + 1.
        class_names: their names.
        source: where the data came from, in words.
        notes: what was noticed on the way.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        scale: Scale | None = None,
        flip: bool = False,
        classes: int | None = None,
        class_names: Sequence[str] = (),
        source: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.x = check.state("data", x)
        self.flip = check.flag("flip", flip)
        if flip and x.ndim != 4:
            raise ValueError(f"flip must be False unless data is [n, C, H, W]; got {list(x.shape)}")
        self.labels, self.classes = checked_labels(labels, len(x), classes, class_names)
        if self.labels is not None:
            self.labels = self.labels.to(x.device)
        self.scale = scale
        self.class_names, self.source, self.notes = tuple(class_names), source, tuple(notes)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.x.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """Of the samples' bytes, the labels and whether images are flipped."""
        return of_tensors(self.x, self.labels, {"flip": self.flip})

    def samples(self, index: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
        """See `TrainingData`; the samples stay on the device of the data."""
        index = index.to(self.x.device, non_blocking=True)
        x0 = self.x[index]
        if self.flip:
            x0 = flipped(x0, augmentation(index, seed, step))
        return x0, None if self.labels is None else self.labels[index]


def flipped(x0: Tensor, u: Tensor) -> Tensor:
    """Images [b, C, H, W], mirrored left to right where the first uniform is below 1/2."""
    return torch.where(u[:, 0, None, None, None] < 0.5, x0.flip(-1), x0)
