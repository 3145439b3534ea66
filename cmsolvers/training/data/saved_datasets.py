"""A folder that `datasets.Dataset.save_to_disk` wrote."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from cmsolvers.training.data.fingerprints import FilePart, of_files
from cmsolvers.training.data.missing_packages import missing
from cmsolvers.training.data.picture_folder import require_pillow
from cmsolvers.training.data.pictures import Pictures
from cmsolvers.training.data.pixel_scale import Scale

SIGNS = ("dataset_info.json", "state.json", "dataset_dict.json")
"""Files that such a folder has."""


def arrow_folder(
    path: str | os.PathLike[str],
    size: int | tuple[int, int],
    *,
    split: str | None = None,
    image: str | None = None,
    label: str | None = None,
    crop: str = "center",
    flip: bool = False,
    channels: int = 3,
    grey: bool = False,
    scale: str | Scale = "minus_one_to_one",
    skip_bad: bool = False,
) -> Pictures:
    """Pictures in a saved `datasets` folder; nothing is asked of the network.

    Args:
        path: the folder.
        size: see `image_folder`, as the rest below `label`.
        split: which part, where the folder has several; None: "train", or the only one.
        image: the column of pictures; None: the only one of that kind.
        label: the column of labels; None: the only one of class labels, if there is one.
        crop: "center" or "random".
        flip: mirror at random.
        channels: 3, 1 or 4.
        grey: turn colours into grey.
        scale: "minus_one_to_one", "data" or a `Scale`.
        skip_bad: decode every picture now and leave out the bad ones.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no saved data set, no such split or column, or a bad picture.
        ModuleNotFoundError: `datasets` or Pillow is not installed.
    """
    require_pillow()
    root = Path(path)
    if not is_arrow_folder(root):
        there = "is not one" if root.exists() else "does not exist"
        kind = ValueError if root.exists() else FileNotFoundError
        raise kind(f"data must be a folder saved by datasets' save_to_disk; {root} {there}")
    table, part = _split(_loaded(root), split, root)
    features: dict[str, Any] = dict(table.features)
    pictures = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    classes = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    image = _column("image", image, pictures, features, root)
    if image not in pictures:
        raise ValueError(f"image must be a column of pictures; {image!r} is {features[image]}")
    if label is not None or classes:
        label = _column("label", label, classes, features, root)
    labels, names = None, ()
    if label is not None:
        values = np.asarray(table.with_format("numpy")[label][:])
        if values.dtype.kind not in "uib" or values.ndim != 1:
            raise ValueError(f"label must be a column of integers; {label!r} is {features[label]}")
        labels = torch.from_numpy(values.astype(np.int64))
        names = tuple(getattr(features[label], "names", None) or ())
    return Pictures(
        _Rows(table.select_columns([image]), image, root, part),
        size,
        labels,
        crop=crop,
        flip=flip,
        channels=channels,
        grey=grey,
        scale=scale,
        skip_bad=skip_bad,
        class_names=names,
        source=root.name or str(root),
    )


def is_arrow_folder(root: Path) -> bool:
    """Whether a folder has the files of a saved data set."""
    return any((root / name).is_file() for name in SIGNS)


class _Rows:
    """A gallery of the encoded pictures in a column."""

    def __init__(self, table: Any, column: str, root: Path, split: str) -> None:
        from datasets import Image

        self.table = table.cast_column(column, Image(decode=False))
        self.column, self.root, self.split = column, root, split

    def __len__(self) -> int:
        return len(self.table)

    def name(self, i: int) -> str:
        part = f"{self.split} " if self.split else ""
        return f"row {i} of {part}{self.root}"

    def open(self, i: int) -> IO[bytes]:
        entry = self.table[i][self.column]
        if entry is None:
            raise OSError("it is empty")
        if entry["bytes"] is not None:
            return io.BytesIO(entry["bytes"])
        return open(entry["path"], "rb")

    def only(self, kept: Sequence[int]) -> _Rows:
        return _Rows(self.table.select(list(kept)), self.column, self.root, self.split)

    def parts(self) -> Iterable[bytes]:
        yield f"{self.split} {self.column} {len(self)}".encode()
        files = sorted(file for file in self.root.rglob("*.arrow"))
        yield from of_files(
            FilePart(str(file.relative_to(self.root)), file.stat().st_size, file)
            for file in files
            if not file.name.startswith("cache-")
        )


def _loaded(root: Path) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise missing("such folders", "datasets", "train") from error
    try:
        return datasets.load_from_disk(str(root))
    except Exception as error:  # of pyarrow, json and datasets
        raise ValueError(f"{root} must be a whole data set; it cannot be read: {error}") from error


def _split(loaded: Any, split: str | None, root: Path) -> tuple[Any, str]:
    """The table of a split, and its name."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise ValueError(f"split must be left out where there is one; {root} has no splits")
        return loaded, ""
    known = sorted(loaded)
    if split is None:
        split = known[0] if len(known) == 1 else "train"
    if split not in loaded:
        raise ValueError(f"split must be one of {', '.join(known)}; got {split!r}")
    return loaded[split], split


def _column(
    what: str, name: str | None, found: Sequence[str], features: dict[str, Any], root: Path
) -> str:
    if name is None and len(found) == 1:
        return found[0]
    if name is None or name not in features:
        got = f"got {name!r}" if name is not None else f"it has {len(found)} of that kind"
        raise ValueError(f"{what} must be a column of {root}: {', '.join(features)}; {got}")
    return name
