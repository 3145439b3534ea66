"""Tables of a run, read again as they grow."""

from __future__ import annotations

import math
from array import array
from pathlib import Path

import numpy as np


class LoggedTable:
    """Columns of a CSV file of numbers, of which each call of `read` parses the new rows alone.

    Args:
        path: of the file, which may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._end = path, 0
        self._columns: dict[str, array[float]] = {}

    def read(self) -> dict[str, np.ndarray]:
        """All columns by name, float64; empty fields are NaN. No columns: no file.

        Raises:
            ValueError: a row that is not of numbers, or of another length.
            OSError: the file cannot be read.
        """
        if not self.path.exists():
            return {}
        if self.path.stat().st_size < self._end:  # cut back
            self._end, self._columns = 0, {}
        with open(self.path, "rb") as file:
            if not self._columns:
                names = file.readline().decode("ascii").strip().split(",")
                self._columns, self._end = {name: array("d") for name in names}, file.tell()
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                fields = line[:-1].split(b",")
                for column, field in zip(self._columns.values(), fields, strict=True):
                    column.append(float(field) if field else math.nan)
                self._end += len(line)
        return {name: np.array(column) for name, column in self._columns.items()}
