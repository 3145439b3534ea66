"""Digests that tell one data set from another, cheap enough for every start of a run.

Small data are digested whole. Of large data a fixed part is: the shape, and 4,096 rows (arrays) or
the names and sizes of all files and the first 64 KiB of 4,096 of them (folders). A change elsewhere
that moves no size is not noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor

WHOLE = 256 * 2**20
"""Tensors of up to so many bytes are digested whole."""
ROWS = 4096
"""Rows of a larger one, or files of a larger folder, that are."""


def of_tensors(x: Tensor, labels: Tensor | None, options: Mapping[str, object]) -> str:
    """Of samples [n, ...] on any device, their labels, and what else matters."""
    digest = sha256(text_of({"dtype": str(x.dtype), "shape": list(x.shape), **options}))
    for part in (x, labels):
        if part is None:
            continue
        rows = part.detach()
        if rows.nbytes > WHOLE:
            rows = rows[spread(len(rows)).to(rows.device)]
        data = rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(data.data)
    return digest.hexdigest()[:16]


def spread(n: int, count: int = ROWS) -> Tensor:
    """At most `count` positions among n, evenly spread, the first and the last included."""
    if n <= count:
        return torch.arange(n)
    return torch.arange(count) * (n - 1) // (count - 1)


def text_of(value: object) -> bytes:
    """Anything that JSON holds, in one way only."""
    return json.dumps(value, sort_keys=True).encode()
