"""A table in a file that only grows, and is cut back when a run goes on from an earlier step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cmsolvers.training.checkpoints.disk import make_folders


class RowFile:
    """Rows of a CSV file whose first column, the steps done, never falls.

    Each `add` is one write to the system, so that a killed process loses nothing of it; a lost
    power supply loses at most what came after the last `sync`.

    Args:
        path: of the file; its folder is made.
        columns: their names; the first is that of the step.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        self.path, self._header = Path(path), ",".join(columns) + "\n"
        self._descriptor: int | None = None

    def open(self, step: int) -> int:
        """Open the file for steps after `step`, which alone are removed, as is half a row.

        Returns:
            The step of the last row that stays; 0 where there is none.

        Raises:
            ValueError: the file is another table.
            OSError: it cannot be read and written.
        """
        self.close()
        make_folders(self.path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o666)
        last, end = 0, 0
        with open(self.path, "rb") as file:
            head = file.readline()
            if head.endswith(b"\n"):
                if head != self._header.encode():
                    raise ValueError(
                        f"{self.path} must be free or begin with {self._header.strip()!r}; "
                        f"it begins with {head[:80]!r}"
                    )
                end = len(head)
                for line in file:
                    first = line.split(b",", 1)[0]
                    if not (line.endswith(b"\n") and first.isdigit() and int(first) <= step):
                        break
                    last, end = int(first), end + len(line)
        os.ftruncate(self._descriptor, end)
        if not end:
            self._write(self._header)
        return last

    def add(self, rows: Sequence[Sequence[object]]) -> None:
        """Write rows; None is an empty field.

        Raises:
            OSError: they cannot be written.
        """
        lines = (",".join("" if v is None else str(v) for v in row) + "\n" for row in rows)
        self._write("".join(lines))

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("ascii"))
        while data and self._descriptor is not None:
            data = data[os.write(self._descriptor, data) :]

    def sync(self) -> None:
        """Wait until the disk has all rows."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
