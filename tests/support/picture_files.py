"""Small folders of pictures, whose pixels say which picture they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def gradient(height: int, width: int, base: int = 0) -> np.ndarray:
    """Pixel (i, j) is (base + i, base + j, 7): its place can be read from it."""
    rows, columns = np.indices((height, width))
    bands = (base + rows, base + columns, np.full_like(rows, 7))
    return np.stack(bands, axis=-1).astype(np.uint8)


def folder(root: Path, count: int = 12, *, classes: int = 2) -> Path:
    """`count` pictures of 10 x 16 pixels, picture k with base k, in turn in each class."""
    for k in range(count):
        name = f"{k:02d}.png"
        place = root / f"class_{k % classes}" / name if classes else root / name
        save(place, gradient(10, 16, k))
    return root
