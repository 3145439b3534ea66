"""Autocast around passes of which nothing may be kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def casts_not_kept() -> Iterator[None]:
    """A block in which autocast keeps no casts of weights.

    Under `torch.no_grad` some versions of torch keep casts without gradient, and a later pass with
    gradient in the same autocast region takes them: its weights get no gradient at all.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
