"""Durable writing: bytes that are on the disk, and names that change in one instant.

A thing is written beside its place under a name that says who writes it, then takes its place by a
rename. What a killed process leaves has such a name, so it can be told from everything else.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

_CHUNK = 16 << 20
_SMALL = 1 << 16  # below, handing work to another thread takes longer than the work
_STRAY = re.compile(r"\.(.+)\.(?:partial|removed)-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_file(path: Path, pieces: Iterable[memoryview]) -> tuple[int, str]:
    """Write a new file and wait until the disk has it.

    Returns:
        How many bytes it has, and their SHA-256, taken from memory while they were written.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        with ThreadPoolExecutor(1) as worker:
            for piece in pieces:
                for start in range(0, len(piece), _CHUNK):
                    chunk = piece[start : start + _CHUNK]
                    size += len(chunk)
                    if len(chunk) < _SMALL:
                        digest.update(chunk)
                        _write_all(descriptor, chunk)
                    else:
                        hashing = worker.submit(digest.update, chunk)
                        _write_all(descriptor, chunk)
                        hashing.result()
        os.fsync(descriptor)
    except OSError as error:
        raise _named(error, path) from error
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _named(error: OSError, path: Path) -> OSError:
    """The error with the name of the file, which calls on descriptors do not know."""
    if error.filename is not None or error.errno is None:
        return error
    return OSError(error.errno, os.strerror(error.errno), str(path))


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such call
            raise _named(error, path) from error
    finally:
        os.close(descriptor)


def make_folders(path: Path) -> None:
    """Make a folder and those above it, durably; nothing happens where it is there."""
    if path.is_dir():
        return
    make_folders(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def replace_file(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a small file: at every instant, its path has the old content or the new one.

    Args:
        path: of the file; its folder must exist.
        data: the whole content; text is encoded as UTF-8.

    Raises:
        OSError: it cannot be written; the old content stays.
    """
    place = Path(os.path.realpath(path))
    remove_strays(place.parent, place.name)
    partial = name_beside(place, "partial")
    try:
        write_file(partial, [memoryview(data.encode() if isinstance(data, str) else data)])
        os.replace(partial, place)
    except BaseException:
        remove(partial)
        raise
    sync_folder(place.parent)


# --- names beside a place -------------------------------------------------------------------------


def name_beside(place: Path, kind: str) -> Path:
    """A name in the same folder for what is not finished ("partial") or on its way out."""
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return place.with_name(f".{place.name}.{kind}-{owner}")


def name_aside(place: Path) -> Path:
    """Where the old folder waits while the new one takes its place in two renames."""
    return place.with_name(f".{place.name}.previous")


@cache
def _machine() -> str:
    """Eight digits for this host and its numbering of processes."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{socket.gethostname()} {numbering}".encode()).hexdigest()[:8]


def remove(path: Path) -> None:
    """Remove a file or folder as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def remove_strays(folder: Path, place: str | None = None) -> None:
    """Remove what killed processes left in a folder.

    Args:
        folder: may be missing.
        place: the name whose leftovers are removed, where no process that lives wrote them; None:
            all leftovers, for one who holds the folder's lock.
    """
    if not folder.is_dir():
        return
    for name in os.listdir(folder):
        found = _STRAY.fullmatch(name)
        if found is None:
            continue
        if place is None or (found[1] == place and found[2] == _machine() and _dead(int(found[3]))):
            remove(folder / name)


def _dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


# --- taking a place -------------------------------------------------------------------------------


def put_in_place(new: Path, place: Path) -> None:
    """Give a finished folder its name; what had that name before is removed.

    At every instant a whole folder is at `place`, or at `name_aside(place)` where the file system
    cannot exchange two names in one act.
    """
    aside = name_aside(place)
    if not os.path.lexists(place):
        os.rename(new, place)
        old = aside
    elif _exchange(new, place):
        old = new
    else:
        _remove_aside(place)
        old = aside
        os.rename(place, aside)
        try:
            os.rename(new, place)
        except BaseException:
            if not os.path.lexists(place):
                os.rename(aside, place)
            raise
    try:
        sync_folder(place.parent)
    finally:
        if old is aside:
            _remove_aside(place)
        else:
            remove(old)


def _remove_aside(place: Path) -> None:
    """Remove the folder aside: first its name, so that a reader of it sees that it went."""
    aside, gone = name_aside(place), name_beside(place, "partial")
    if not os.path.lexists(aside):
        return
    try:
        os.rename(aside, gone)
    except OSError:
        gone = aside
    remove(gone)


def settle(place: Path) -> None:
    """After a kill between the two renames of `put_in_place`: the old folder is back or gone."""
    aside = name_aside(place)
    if os.path.lexists(place):
        _remove_aside(place)
    elif aside.is_dir():
        os.rename(aside, place)
        sync_folder(place.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one act (renameat2); False where that is impossible."""
    function = getattr(_libc(), "renameat2", None)
    if function is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


@cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None
