"""Images and points in .npy and .npz files, in memory or read from the file at each step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.data.array_headers import Header, headers, read
from cmsolvers.training.data.class_labels import checked_labels
from cmsolvers.training.data.fingerprints import of_parts, sample_of
from cmsolvers.training.data.pixel_scale import Scale
from cmsolvers.training.data.stream_places import augmentation
from cmsolvers.training.data.tensor_data import TensorData, flipped

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
LABELS = ("labels", "label", "y")
SCALES = ("data", "minus_one_to_one")
IN_MEMORY = 2**28
"""Arrays of up to so many bytes are read into memory; larger .npy files stay where they are."""


def array_file(
    path: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    scale: str | Scale = "data",
    flip: bool = False,
    in_memory: int = IN_MEMORY,
) -> TensorData | ArrayFile:
    """Images [n, H, W], [n, C, H, W] or [n, H, W, C], or points [n, D], and their labels.

    Args:
        path: an .npy file, or an .npz file whose labels are its entry "labels", "label" or "y" and
            whose samples are the first other one.
        labels: an .npy file of integers [n], for samples in an .npy file.
        scale: "data", mean 0 and deviation 0.5 over all values (of a large .npy file: of at most
            4,096 rows and 64 MiB); "minus_one_to_one": 0 to 255 for 8 bits, 0 to 65,535 for 16, and
            for floats [-1, 1] or [0, 1], whichever holds them; or a `Scale`.
        flip: mirror images left to right at random.
        in_memory: an .npy file with more bytes is not read into memory; each step reads its rows.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, another shape, entries that are no numbers or not finite,
            a header that claims more than the file has, labels that do not fit.
    """
    path = Path(path)
    found = headers(path)
    entry = next((name for name in LABELS if name in found), None)
    header = next((header for name, header in found.items() if name != entry), None)
    if header is None:
        raise ValueError(f"{path} must hold samples besides {entry}; it does not")
    if not isinstance(scale, Scale):
        check.choice("scale", scale, SCALES)
    names = _labels(path, None if entry is None else found[entry], labels)
    if not header.name and header.bytes > in_memory:
        return ArrayFile(path, header, names, scale=scale, flip=flip)
    x = _images(read(path, header))
    scale = scale if isinstance(scale, Scale) else _scale(scale, x, header.dtype)
    return TensorData(scale.to_model(x), names, scale=scale, flip=flip, source=path.name)


def load_images(path: str | Path) -> Tensor:
    """Images from a .npy file, or the first array of a .npz file, as float32 [n, C, H, W].

    Accepts [n, H, W], [n, C, H, W] and [n, H, W, C] (1, 3 or 4 channels, fewer than rows);
    integers or floats.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, another shape, entries that are no numbers or not finite,
            a header that claims more than the file has.
    """
    path = Path(path)
    return _images(read(path, next(iter(headers(path).values()))), points=False)


class ArrayFile:
    """Samples in an .npy file that is not read into memory (see `TrainingData`)."""

    def __init__(
        self,
        path: Path,
        header: Header,
        labels: Tensor | None,
        *,
        scale: str | Scale,
        flip: bool,
    ) -> None:
        self.path, self.source = path, path.name
        self._array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        self._layout = layout(header.shape, points=True)
        self.flip = check.flag("flip", flip)
        self.labels, self.classes = checked_labels(labels, len(self))
        if not isinstance(scale, Scale):
            rows = self._rows(sample_of(len(self), header.bytes))
            scale = _scale(scale, rows, header.dtype, whole=len(rows) == len(self))
        self.scale = scale
        self.shape = tuple(self._rows(torch.zeros(1, dtype=torch.int64)).shape[1:])
        if flip and len(self.shape) != 3:
            raise ValueError(f"flip must be False unless data are images; got {list(self.shape)}")
        some = self._array[sample_of(len(self), header.bytes).numpy()]
        parts = [repr((header, self.scale, flip)).encode(), some.tobytes()]
        if self.labels is not None:
            parts.append(self.labels.numpy().tobytes())
        self.fingerprint = of_parts(parts)

    def __len__(self) -> int:
        return len(self._array)

    def samples(self, index: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor | None]:
        """See `TrainingData`; float32 on the CPU.

        Raises:
            ValueError: rows that are not finite.
        """
        index = index.cpu()
        x0 = self.scale.to_model(self._rows(index))
        if self.flip:
            x0 = flipped(x0, augmentation(index, seed, step))
        return x0, None if self.labels is None else self.labels[index]

    def _rows(self, index: Tensor) -> Tensor:
        try:
            return _images(self._array[index.numpy()], kind=self._layout)
        except ValueError as error:
            raise ValueError(f"{self.path}, among rows {index[:5].tolist()}...: {error}") from error

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_array": None}  # an open file is opened again, not sent

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)


def layout(shape: tuple[int, ...], *, points: bool) -> str:
    """How samples lie in an array: "points", "grey", "first" or "last", where the channels are.

    Raises:
        ValueError: another shape, or one without values.
    """
    if 0 not in shape:
        if len(shape) == 2 and points:
            return "points"
        if len(shape) == 3:
            return "grey"
        if len(shape) == 4:
            last = shape[3] in (1, 3, 4) and shape[3] < shape[1]
            return "last" if last else "first"
    raise ValueError(
        f"images must have shape [n, H, W], [n, C, H, W] or [n, H, W, C]"
        f"{', points [n, D]' if points else ''}; got {shape}"
    )


def _images(array: Array, *, points: bool = True, kind: str | None = None) -> Tensor:
    """An array as float32 [n, C, H, W], or [n, D] for points."""
    kind = layout(array.shape, points=points) if kind is None else kind
    if kind == "grey":
        array = array[:, None]
    elif kind == "last":
        array = array.transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if array.dtype.kind == "f" and not bool(images.isfinite().all()):
        raise ValueError("images must be finite; got nan or inf")
    return images


def _scale(kind: str, x: Tensor, dtype: np.dtype[Any], *, whole: bool = True) -> Scale:
    """The scale of samples, or of a part of them, that have this dtype in their file."""
    if kind == "data":
        scale = Scale.of(x)
        if dtype == np.uint8 and not whole:  # other rows may reach further
            return Scale(scale.mean, scale.std, 0.0, 255.0)
        return scale
    if dtype.kind in "ub":
        most = 1 if dtype.kind == "b" else np.iinfo(dtype).max
        if most > 65535:
            raise ValueError(f"scale must be 'data' or a Scale for pixels of dtype {dtype}")
        return Scale.between(0.0, float(most))
    low, high = float(x.min()), float(x.max())
    for ends in ((0.0, 1.0), (-1.0, 1.0)) if dtype.kind == "f" else ((0.0, 255.0),):
        if ends[0] <= low and high <= ends[1]:
            return Scale.between(*ends)
    raise ValueError(
        f"scale must be 'data' or a Scale for values outside [-1, 1]; they reach from {low:g} to "
        f"{high:g}"
    )


def _labels(
    path: Path, header: Header | None, other: str | os.PathLike[str] | None
) -> Tensor | None:
    if other is not None:
        if header is not None:
            raise ValueError(f"labels must be left out where {path} has {header.name!r}")
        path = Path(other)
        found = headers(path)
        header = next((found[name] for name in ("", *LABELS) if name in found), None)
        if header is None:
            raise ValueError(f"labels must be an .npy file; {path} has {', '.join(found)}")
    if header is None:
        return None
    if header.dtype.kind not in "uib":
        raise TypeError(f"labels must be integers; {path} has dtype {header.dtype}")
    return torch.from_numpy(read(path, header).astype(np.int64))
