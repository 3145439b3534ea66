"""One trainer at a time: a lock that ends with the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()


class FolderInUseError(ValueError):
    """Another process holds the lock of a run's folder; the text names it."""


def _leave_to_the_parent() -> None:
    """In a forked child: the lock is its parent's, and must not outlive it in open files here."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file, which is there only meanwhile; its folder must exist.

    The system ends the lock with the process, however that dies; child processes have no part in
    it.

    Raises:
        FolderInUseError: someone else holds it.
        OSError: the file cannot be made.
    """
    descriptor = _take(path)
    _held.add(descriptor)
    try:
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.truncate(descriptor, 0)
        os.write(descriptor, holder.encode())
        yield
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            # Removed while it is held: who opened it sees that it is no longer the file there.
            if _is_at(path, descriptor):
                path.unlink(missing_ok=True)
            os.close(descriptor)


def _take(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise FolderInUseError(
                f"one trainer at a time may use {path.parent}; it is in use by {holder}"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                os.close(descriptor)
                raise
            warnings.warn(
                f"the file system of {path} has no locks: nothing keeps a second trainer away",
                stacklevel=2,
            )
            return descriptor
        os.close(descriptor)  # its holder removed it in this moment


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(found['pid'])} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just begun"
