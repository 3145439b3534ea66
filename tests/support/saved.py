"""What a checkpoint's folder holds."""

from __future__ import annotations

from pathlib import Path


def content(path: Path) -> dict[str, bytes]:
    """File name -> bytes."""
    assert path.is_dir()
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
