"""Digests that tell one data set from another, cheap enough for every start of a run.

Small data are digested whole. Of large data a fixed part is: the shape, and 4,096 rows (arrays) or
the names and sizes of all files and the first 16 KiB of 4,096 of them (folders). A change elsewhere
that moves no size is not noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cmsolvers.training.data.stream_places import fixed_sample

WHOLE = 256 * 2**20
"""Tensors of up to so many bytes are digested whole."""
ROWS = 4096
"""Rows of a larger one, or files of a larger folder, that are."""
HEAD = 2**14
"""Bytes of each such file."""
PART = 2**26
"""Bytes of such rows."""


def of_tensors(x: Tensor, labels: Tensor | None, options: Mapping[str, object]) -> str:
    """Of samples [n, ...] on any device, their labels, and what else matters."""
    digest = sha256(text_of({"dtype": str(x.dtype), "shape": list(x.shape), **options}))
    for part in (x, labels):
        if part is None:
            continue
        rows = part.detach()
        if rows.nbytes > WHOLE:
            rows = rows[sample_of(rows.shape[0], rows.nbytes).to(rows.device)]
        data = rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(data.data)
    return digest.hexdigest()[:16]


def sample_of(n: int, nbytes: int) -> Tensor:
    """Fixed positions among n rows of nbytes in all: at most 4,096, and 64 MiB but 16 rows."""
    return fixed_sample(n, min(ROWS, max(16, PART * n // max(nbytes, 1))))


class FilePart(NamedTuple):
    """A file: its name in the data set, its size in bytes, and where it is."""

    name: str
    size: int
    path: Path


def of_files(files: Iterable[FilePart]) -> Iterator[bytes]:
    """Names and sizes of all files, and the beginnings of a fixed sample of them."""
    files = list(files)
    for file in files:
        yield f"{file.size} {len(os.fsencode(file.name))} ".encode() + os.fsencode(file.name)
    for i in fixed_sample(len(files), ROWS).tolist():
        try:
            with open(files[i].path, "rb") as content:
                yield content.read(HEAD)
        except OSError:
            yield b"unreadable"  # whoever needs the file says so


def of_parts(parts: Iterable[bytes]) -> str:
    """Of bytes one after the other, each with its length."""
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def text_of(value: object) -> bytes:
    """Anything that JSON holds, in one way only."""
    return json.dumps(value, sort_keys=True).encode()
