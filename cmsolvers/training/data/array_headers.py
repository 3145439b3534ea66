"""What an .npy or .npz file holds, read from its headers before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy

MOST_DEFLATED = 1032
"""Deflate makes nothing smaller than 1/1032 of it."""


@dataclass(frozen=True)
class Header:
    """An array in a file.

    Attributes:
        name: of the entry; "" in an .npy file.
        shape: of the array.
        dtype: of the array.
        bytes: of its values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    bytes: int


def headers(path: Path) -> Mapping[str, Header]:
    """The arrays of a file by their names, all known to be there whole.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .npy or .npz file of numbers, or a header that claims more than the file or
            this machine's memory has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data must be an .npy or .npz file; there is none at {path}")
    wrong = f"data must be an .npy or .npz file of numbers; {path} is not"
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(0)
            if not start.startswith(b"PK"):
                header = _header(file, "", path)
                _check_room(header, path.stat().st_size - file.tell(), path)
                return {"": header}
        return _of_archive(path)
    except (BadZipFile, EOFError, _HeaderError) as error:
        raise ValueError(f"{wrong} ({error})" if str(error) else wrong) from error


def read(path: Path, header: Header) -> np.ndarray[Any, np.dtype[Any]]:
    """The array of a header in memory.

    Raises:
        ValueError: its content is damaged, or more than this machine's memory.
    """
    memory = memory_bytes()
    if header.bytes > memory:
        raise ValueError(
            f"{_place(path, header)} must fit into memory, {sized(memory)}; it has shape "
            f"{list(header.shape)}, {sized(header.bytes)}: an .npy file is read piece by piece"
        )
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            array: np.ndarray[Any, np.dtype[Any]] = loaded[header.name]
            return array
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{_place(path, header)} is damaged: {error}") from error


class _HeaderError(Exception):
    """No header of an array of numbers."""


def _header(file: IO[bytes], name: str, path: Path) -> Header:
    """The header at the file's position, which is left at the first value."""
    try:
        version = npy.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = npy.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of the format is not read")
    except (ValueError, OSError, EOFError) as error:
        raise _HeaderError("" if not name else f"{name}: {error}") from error
    if dtype.kind not in "uifb":
        raise ValueError(f"images must be numbers; {path} has dtype {dtype}")
    if any(side < 0 for side in shape):
        raise _HeaderError(f"it claims shape {list(shape)}")
    return Header(name, tuple(shape), dtype, math.prod(shape) * dtype.itemsize)


def _of_archive(path: Path) -> dict[str, Header]:
    found: dict[str, Header] = {}
    whole = path.stat().st_size
    with ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                continue
            try:
                with archive.open(info) as file:
                    header = _header(file, name, path)
                    begun = file.tell()
            except (NotImplementedError, RuntimeError) as error:  # a method, a password
                raise _HeaderError(f"{name}: {error}") from error
            packed = min(info.compress_size, whole)
            most = packed if info.compress_type == ZIP_STORED else packed * MOST_DEFLATED
            _check_room(header, min(info.file_size, most) - begun, path)
            found[name] = header
    if not found:
        raise _HeaderError("it holds no array")
    return found


def _check_room(header: Header, there: int, path: Path) -> None:
    if header.bytes > there:
        raise ValueError(
            f"{_place(path, header)} must be whole: its header claims shape {list(header.shape)}, "
            f"{sized(header.bytes)}; the file has {sized(max(there, 0))}"
        )


def _place(path: Path, header: Header) -> str:
    return f"{path}:{header.name}" if header.name else str(path)


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def sized(count: int) -> str:
    """Bytes in words: "45 TiB"."""
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, 6)
    return f"{count / 1024**power:.3g} {'KMGTPE'[power - 1]}iB"
