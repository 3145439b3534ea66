"""Pictures that are read, cut and scaled when a step needs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import IO, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.data.class_labels import checked_labels
from cmsolvers.training.data.fingerprints import of_parts
from cmsolvers.training.data.picture_decoding import Array, View
from cmsolvers.training.data.pixel_scale import Scale
from cmsolvers.training.data.stream_places import augmentation, fixed_sample
from cmsolvers.training.data.tensor_data import flipped

CROPS = ("center", "random")
SCALES = ("minus_one_to_one", "data")
STATISTICS = 4096
"""Pictures whose pixels give the scale "data"."""
LOOKED_AT = 32
"""Pictures that are decoded before a run: a mistake in all of them is told at once."""
EIGHT_BITS = Scale.between(0.0, 255.0)

_T = TypeVar("_T")


class Gallery(Protocol):
    """Where pictures are kept; in every process the same ones in the same order."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Of picture i, for errors."""
        ...

    def open(self, i: int) -> IO[bytes]:
        """Picture i, open for reading.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def only(self, kept: Sequence[int]) -> Gallery:
        """These pictures alone."""
        ...

    def parts(self) -> Iterable[bytes]:
        """What a fingerprint is made of."""
        ...


class Pictures:
    """Pictures of a gallery as samples (see `TrainingData`).

    Attributes:
        gallery: the pictures.
        labels: int64 [n], or None.
        bad: how many pictures were left out because they cannot be read.
    """

    def __init__(
        self,
        gallery: Gallery,
        size: int | tuple[int, int],
        labels: Tensor | None,
        *,
        crop: str = "center",
        flip: bool = False,
        channels: int = 3,
        grey: bool = False,
        scale: str | Scale = "minus_one_to_one",
        skip_bad: bool = False,
        class_names: Sequence[str] = (),
        source: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        self.view = View(height, width, channels, grey)
        self.crop = check.choice("crop", crop, CROPS)
        self.flip = check.flag("flip", flip)
        if not isinstance(scale, Scale):
            check.choice("scale", scale, SCALES)
        check.flag("skip_bad", skip_bad)
        self.gallery, self.source, self.notes = gallery, source, tuple(notes)
        self.class_names = tuple(class_names)
        self.bad = 0
        self.labels, self.classes = checked_labels(labels, len(gallery), None, class_names)
        if skip_bad:
            self._leave_out_bad()
        else:
            in_threads(self._pixels, fixed_sample(len(gallery), LOOKED_AT).tolist())
        self.scale = scale if isinstance(scale, Scale) else self._scale(scale)
        # The value that models see for each 8-bit pixel.
        self._seen = self.scale.to_model(torch.arange(256)).numpy()

    def __len__(self) -> int:
        return len(self.gallery)

    @cached_property
    def fingerprint(self) -> str:
        """Of the gallery, the labels, and how pictures are seen."""
        options = (self.view, self.crop, self.flip, self.scale, self.class_names)
        labels = b"" if self.labels is None else self.labels.numpy().tobytes()
        return of_parts((repr(options).encode(), labels, *self.gallery.parts()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample, [C, H, W]."""
        return self.view.channels, self.view.height, self.view.width

    def samples(self, index: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
        """See `TrainingData`; float32 on the CPU.

        Raises:
            ValueError: a picture cannot be read, or is not of these channels; the text names it.
        """
        index = index.cpu()
        x0 = torch.empty(len(index), *self.shape)
        changed = self.crop == "random" or self.flip
        u = augmentation(index, seed, step) if changed else torch.zeros(len(index), 1)
        for row, i in enumerate(index.tolist()):
            where = (0.5, 0.5)
            if self.crop == "random":
                where = (float(u[row, 1]), float(u[row, 2]))
            x0[row] = self._model_space(self._pixels(i, where))
        if self.flip:
            x0 = flipped(x0, u)
        return x0, None if self.labels is None else self.labels[index]

    def _pixels(self, i: int, where: tuple[float, float] = (0.5, 0.5)) -> Array:
        name = self.gallery.name(i)
        try:
            file = self.gallery.open(i)
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror or error}") from error
        try:
            with file:
                return self.view.pixels(file, name, where)
        except ValueError as error:
            raise ValueError(f"{error} (skip_bad leaves such pictures out)") from error

    def _model_space(self, pixels: Array) -> Tensor:
        if pixels.dtype == np.uint8:
            return torch.from_numpy(self._seen[pixels])
        return self.scale.to_model(torch.from_numpy(pixels.copy()))

    def _scale(self, kind: str) -> Scale:
        if kind != "data":
            return EIGHT_BITS
        chosen = fixed_sample(len(self.gallery), STATISTICS).tolist()
        sums = in_threads(lambda i: _sums(self._pixels(i)), chosen)
        count, total, squares = (sum(column) for column in zip(*sums, strict=True))
        mean = total / count
        variance = (squares - total * mean) / max(count - 1, 1)
        if not variance > 0:
            raise ValueError(f"images must not all be of one colour; got variance {variance}")
        return Scale(mean, float(np.sqrt(variance)), 0.0, 255.0)

    def _leave_out_bad(self) -> None:
        def reason(i: int) -> str:
            try:
                self._pixels(i)
            except ValueError as error:
                return str(error).removesuffix(" (skip_bad leaves such pictures out)")
            return ""

        reasons = in_threads(reason, range(len(self.gallery)))
        kept = [i for i, text in enumerate(reasons) if not text]
        texts = [text for text in reasons if text]
        if not texts:
            return
        if not kept:
            raise ValueError(f"data must hold pictures that can be read; all are bad: {texts[0]}")
        self.bad = len(texts)
        shown = "; ".join(texts[:3]) + ("; ..." if len(texts) > 3 else "")
        self.notes += (f"{self.bad} of {len(reasons)} pictures were left out: {shown}",)
        self.gallery = self.gallery.only(kept)
        if self.labels is not None:
            self.labels = self.labels[torch.tensor(kept)]


def _sums(pixels: Array) -> tuple[int, float, float]:
    values = pixels.astype(np.float64)
    return values.size, float(values.sum()), float(np.square(values).sum())


def in_threads(work: Callable[[int], _T], items: Iterable[int]) -> list[_T]:
    """Work on several cores, as Pillow decodes without the interpreter's lock; an error ends it."""
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)
