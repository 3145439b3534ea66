"""Where samples are kept, so that a killed run goes on: PNG files, or parts of an .npz file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.lib import format as npy

from cmsolvers.training.checkpoints import disk
from cmsolvers.training.picture_pages import png_bytes

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
PER_FOLDER = 1000
"""Pictures in a folder."""
_BLOCK = 4096
"""What a file takes at least on most disks."""


class Store(Protocol):
    """A place for samples by id, in which each one is whole or not there."""

    def bytes_of(self, count: int) -> int:
        """About how much disk so many samples take, until the run has ended."""
        ...

    def done(self, num: int) -> Array:
        """Which of the samples 0 ... num - 1 are there, bool [num]."""
        ...

    def write(self, first: int, values: Array, finite: Array) -> None:
        """Keep samples first, first + 1, ...; of those that are not finite only that they are so.

        Args:
            first: id of the first.
            values: [b, ...] as they are stored.
            finite: bool [b].
        """
        ...

    def not_finite(self, num: int) -> list[int]:
        """The ids of those that are not finite."""
        ...

    def finish(self, num: int, labels: Array | None) -> None:
        """Once all are there: put them together."""
        ...

    def first(self, count: int) -> Array:
        """The first samples of a run that has ended, at most `count`, as they are stored."""
        ...

    def clean(self) -> None:
        """Remove what killed processes left half done."""
        ...


class PictureStore:
    """PNG files `images/00012/00012345.png`; `.not-finite` stands for a sample that is not."""

    NAME = re.compile(r"(\d{8,17})\.(png|not-finite)")

    def __init__(self, out: Path, shape: tuple[int, ...]) -> None:
        self.folder = out / "images"
        self._size = int(np.prod(shape))

    def bytes_of(self, count: int) -> int:
        return count * -(-(self._size + 200) // _BLOCK) * _BLOCK

    def place(self, i: int) -> Path:
        """Of sample i, without its ending."""
        return self.folder / f"{i // PER_FOLDER:05d}" / f"{i:08d}"

    def _found(self) -> Iterator[tuple[int, str]]:
        if not self.folder.is_dir():
            return
        for part in os.scandir(self.folder):
            for name in os.listdir(part.path) if part.is_dir() else []:
                if found := self.NAME.fullmatch(name):
                    yield int(found[1]), found[2]

    def done(self, num: int) -> Array:
        there = np.zeros(num, bool)
        for i, _ in self._found():
            if i < num:
                there[i] = True
        return there

    def write(self, first: int, values: Array, finite: Array) -> None:
        for folder in {self.place(first + i).parent for i in range(len(values))}:
            disk.make_folders(folder)

        def one(i: int) -> None:
            place = self.place(first + i)
            if finite[i]:
                _write(place.with_suffix(".png"), png_bytes(values[i]))
            else:
                _write(place.with_suffix(".not-finite"), b"")

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(one, range(len(values))))

    def not_finite(self, num: int) -> list[int]:
        return sorted(i for i, kind in self._found() if kind != "png" and i < num)

    def finish(self, num: int, labels: Array | None) -> None:
        if labels is not None:
            from io import BytesIO

            file = BytesIO()
            np.save(file, labels)
            disk.replace_file(self.folder.parent / "labels.npy", file.getvalue())

    def first(self, count: int) -> Array:
        from PIL import Image

        found = []
        for i in range(count):
            if (place := self.place(i).with_suffix(".png")).is_file():
                pixels = np.asarray(Image.open(place))
                found.append(pixels[:, :, None] if pixels.ndim == 2 else pixels)
        return np.stack(found) if found else np.zeros((0, 1, 1, 1), np.uint8)

    def clean(self) -> None:
        if self.folder.is_dir():
            for part in os.scandir(self.folder):
                disk.remove_strays(Path(part.path))


class ArrayStore:
    """Parts `parts/FIRST-END.npy` of any length, which become samples.npz at the end.

    In it, `arr_0` holds the samples (images as 8 bits [n, H, W, C], the form that published
    evaluations of images read; others as float32), `ids` theirs, and `labels` their classes.
    """

    NAME = re.compile(r"(\d{12,18})-(\d{12,18})\.npz")

    def __init__(self, out: Path, row: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.folder, self.file = out / "parts", out / "samples.npz"
        self.row, self.dtype = row, np.dtype(dtype)

    def bytes_of(self, count: int) -> int:
        return count * (2 * int(np.prod(self.row)) * self.dtype.itemsize + 32)

    def _parts(self) -> list[tuple[int, int, Path]]:
        if not self.folder.is_dir():
            return []
        found = [(self.NAME.fullmatch(name), name) for name in os.listdir(self.folder)]
        return sorted((int(m[1]), int(m[2]), self.folder / name) for m, name in found if m)

    def done(self, num: int) -> Array:
        there = np.zeros(num, bool)
        if self.file.is_file():
            there[:] = True
        for first, end, _ in self._parts():
            there[first:end] = True
        return there

    def write(self, first: int, values: Array, finite: Array) -> None:
        from io import BytesIO

        disk.make_folders(self.folder)
        file = BytesIO()
        np.savez(file, values=values[finite].astype(self.dtype, copy=False), finite=finite)
        _write(self.folder / f"{first:012d}-{first + len(values):012d}.npz", file.getvalue())

    def not_finite(self, num: int) -> list[int]:
        if self.file.is_file():
            with np.load(self.file, allow_pickle=False) as found:
                there = np.zeros(num, bool)
                there[found["ids"]] = True
            return [int(i) for i in np.flatnonzero(~there)]
        bad: list[int] = []
        for first, _, path in self._parts():
            bad += [first + int(i) for i in np.flatnonzero(~_part(path)[1])]
        return bad

    def finish(self, num: int, labels: Array | None) -> None:
        if not self.file.is_file():
            self._join(num, labels)
        disk.remove(self.folder)

    def _join(self, num: int, labels: Array | None) -> None:
        parts, at = self._parts(), 0
        finite = np.zeros(num, bool)
        for first, end, path in parts:
            if first != at:
                raise ValueError(
                    f"{self.folder} must hold samples {at} ... {first - 1}; it does not"
                )
            finite[first:end], at = _part(path)[1], end
        if at != num:
            raise ValueError(f"{self.folder} must hold {num} samples; it holds {at}")
        ids = np.flatnonzero(finite)
        partial = disk.name_beside(self.file, "partial")
        try:
            with ZipFile(partial, "w", ZIP_STORED) as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
                    shape = (len(ids), *self.row)
                    npy.write_array_header_1_0(entry, _header(shape, self.dtype))
                    for _, _, path in parts:
                        entry.write(_part(path)[0].tobytes())
                extra = {"ids": ids} | ({} if labels is None else {"labels": labels[ids]})
                for name, array in extra.items():
                    with archive.open(f"{name}.npy", "w") as entry:
                        npy.write_array(entry, array, allow_pickle=False)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.file)
        except BaseException:
            disk.remove(partial)
            raise
        disk.sync_folder(self.file.parent)

    def first(self, count: int) -> Array:
        with ZipFile(self.file) as archive, archive.open("arr_0.npy") as file:
            npy.read_magic(file)
            shape, _, dtype = npy.read_array_header_1_0(file)
            count = min(count, shape[0])
            data = file.read(count * int(np.prod(shape[1:])) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(count, *shape[1:])

    def clean(self) -> None:
        disk.remove_strays(self.folder)
        disk.remove_strays(self.file.parent, self.file.name)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    return {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}


def _part(path: Path) -> tuple[Array, Array]:
    """Values of the finite samples of a part, and which are finite."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return found["values"], found["finite"]
    except Exception as error:  # numpy's and zipfile's readers raise errors of many kinds
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and its samples are made again"
        ) from error


def _write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all, without waiting for the disk."""
    partial = disk.name_beside(path, "partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except BaseException:
        disk.remove(partial)
        raise
