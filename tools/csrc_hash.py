"""The hash that names a state of `csrc/`: built into the extension, and written beside results."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

SUFFIXES = (".h", ".cuh", ".cpp", ".cu")


def csrc_hash(folder: Path) -> str:
    """Return 16 hex digits over the names and contents of the sources under `folder`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    root = (
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "csrc"
    )
    print(csrc_hash(root))
