"""A folder of pictures, their classes by subfolder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from cmsolvers import checks as check
from cmsolvers.training.data.fingerprints import FilePart, of_files
from cmsolvers.training.data.missing_packages import missing
from cmsolvers.training.data.picture_decoding import ENDINGS
from cmsolvers.training.data.pictures import Pictures
from cmsolvers.training.data.pixel_scale import Scale

HIDDEN = (".", "__MACOSX")
"""What names begin with that are no part of the data."""


def image_folder(
    path: str | os.PathLike[str],
    size: int | tuple[int, int],
    *,
    crop: str = "center",
    flip: bool = False,
    channels: int = 3,
    grey: bool = False,
    scale: str | Scale = "minus_one_to_one",
    labels: bool | None = None,
    skip_bad: bool = False,
) -> Pictures:
    """Pictures of any size in a folder and the folders in it.

    Where all pictures lie in two or more subfolders, these are the classes, in the order of their
    names. The order of pictures is that of their paths relative to the folder, whatever the file
    system says. Names that begin with a dot are left alone, files of other endings counted
    (`notes`).

    Args:
        path: the folder.
        size: rows and columns of a sample, one number or (rows, columns). Each picture is scaled
            so that it just covers that, and cut.
        crop: "center", or "random": a place that is a function of (seed, step, position).
        flip: mirror left to right with probability 1/2, a function of the same.
        channels: 3, 1 or 4; see `picture_decoding` for what is done to other pictures.
        grey: with channels=1, turn colours into grey; otherwise they are an error.
        scale: "minus_one_to_one", pixel / 127.5 - 1, as most published models see them; "data",
            mean 0 and deviation 0.5 over the pixels of at most 4,096 pictures; or a `Scale`.
        labels: False: subfolders are no classes. True: one subfolder is a class too.
        skip_bad: decode every picture now and leave out those that are damaged or of other
            channels (`bad`, `notes`). Otherwise a few are decoded now, and a bad one ends the run
            when it is met, with its name.

    Raises:
        FileNotFoundError, NotADirectoryError: no folder there.
        ValueError: no pictures, an empty class, pictures beside class folders, or a bad picture.
        ModuleNotFoundError: Pillow is not installed.
    """
    require_pillow()
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"data must be a folder of pictures; there is none at {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"data must be a folder of pictures; {root} is a file")
    others: Counter[str] = Counter()
    files = sorted(_pictures(str(root), "", others, set()))
    if not files:
        raise ValueError(
            f"{root} must hold pictures ({', '.join(sorted(ENDINGS))}); it has none"
            + (f", but {others.total()} other files" if others else "")
        )
    names, classes = _classes(root, [name for name, _ in files], labels)
    notes = []
    if others:
        kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items())[:8])
        notes.append(f"{others.total()} files that are no pictures were left alone ({kinds})")
    return Pictures(
        Files(root, files),
        size,
        None if classes is None else torch.tensor(classes),
        crop=crop,
        flip=flip,
        channels=channels,
        grey=grey,
        scale=scale,
        skip_bad=skip_bad,
        class_names=names,
        source=root.name or str(root),
        notes=notes,
    )


class Files:
    """A gallery of files below a folder: (relative path, size in bytes) each."""

    def __init__(self, root: Path, files: Sequence[tuple[str, int]]) -> None:
        self.root, self.sizes = root, [size for _, size in files]
        # One string: a worker process would copy the pages of a million small ones.
        encoded = [os.fsencode(name) for name, _ in files]
        self._text = b"".join(encoded)
        ends = torch.tensor([len(name) for name in encoded], dtype=torch.int64).cumsum(0)
        self._ends = ends.numpy()

    def __len__(self) -> int:
        return len(self.sizes)

    def relative(self, i: int) -> str:
        """The path of file i below the folder."""
        start = int(self._ends[i - 1]) if i else 0
        return os.fsdecode(self._text[start : int(self._ends[i])])

    def name(self, i: int) -> str:
        return str(self.root / self.relative(i))

    def open(self, i: int) -> IO[bytes]:
        return open(self.root / self.relative(i), "rb")

    def only(self, kept: Sequence[int]) -> Files:
        return Files(self.root, [(self.relative(i), self.sizes[i]) for i in kept])

    def parts(self) -> Iterable[bytes]:
        return of_files(
            FilePart(self.relative(i), self.sizes[i], self.root / self.relative(i))
            for i in range(len(self))
        )


def require_pillow() -> None:
    """Say what to install where there is no Pillow."""
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing("pictures", "Pillow", "train") from error


def _pictures(
    root: str, below: str, others: Counter[str], above: set[tuple[int, int]]
) -> Iterator[tuple[str, int]]:
    """Relative path and size of every picture; endings of other files are counted."""
    here = os.path.join(root, below)
    status = os.stat(here)
    place = (status.st_dev, status.st_ino)
    if place in above:
        return  # a link to a folder that this one lies in
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.name.startswith(HIDDEN):
                continue
            relative = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                yield from _pictures(root, relative, others, above | {place})
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in ENDINGS:
                yield relative, _size(entry)
            else:
                others[ending or "without ending"] += 1


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # a link to nothing: opening it will say so
        return -1


def _classes(
    root: Path, files: Sequence[str], labels: bool | None
) -> tuple[list[str], list[int] | None]:
    """Names of the classes, and the class of each file; ([], None) without classes."""
    if labels is not None:
        check.flag("labels", labels)
    folders = sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and not entry.name.startswith(HIDDEN)
    )
    if labels is False or not folders or (labels is None and len(folders) == 1):
        if labels:
            raise ValueError(f"{root} must have a subfolder for each class; it has none")
        return [], None
    if direct := [name for name in files if "/" not in name]:
        raise ValueError(
            f"{root} must hold pictures in class folders or all beside each other; it has "
            f"{len(direct)}, such as {direct[0]}, beside the folders {', '.join(folders[:5])}: "
            "move them, or give labels=False"
        )
    first = [name.split("/", 1)[0] for name in files]
    counts = Counter(first)
    if empty := [folder for folder in folders if not counts[folder]]:
        raise ValueError(
            f"each class folder of {root} must hold pictures; there are none in "
            f"{', '.join(empty[:5])}: fill or remove it, or give labels=False"
        )
    number = {folder: k for k, folder in enumerate(folders)}
    return folders, [number[folder] for folder in first]
