"""Images side by side in one picture of a reasonable size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cmsolvers.training.checkpoints import replace_file
from cmsolvers.training.data import Scale

Pixels: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
"""uint8 [n, H, W, C]."""

LARGEST = 2000
"""Pixels along the longer side of a picture."""
SMALL = 40
"""Images with fewer pixels along a side are enlarged, by whole factors."""
CHANNELS = (1, 3, 4)


def pixels_of(x: Tensor, scale: Scale) -> Pixels:
    """Images [n, C, H, W] as models see them -> 8 bits [n, H, W, C].

    0 and 255 are the ends of the scale. Values beyond them are cut off; nan must not be among them.
    """
    shares = (scale.to_pixels(x).double() - scale.low) / (scale.high - scale.low)
    pixels = (255.0 * shares).round_().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.cpu().numpy())


def tiles(images: Pixels, columns: int) -> Pixels:
    """Images in rows from left to right, with lines between them, as one image [H, W, C].

    Small images are enlarged without smoothing, a picture that would be too large is made smaller.
    """
    n, height, width, channels = images.shape
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    zoom = max(1, SMALL // max(height, width))
    images = images.repeat(zoom, 1).repeat(zoom, 2)
    height, width, line = height * zoom, width * zoom, max(1, zoom // 2)
    page = np.full((rows * columns, height + line, width + line, channels), 255, np.uint8)
    page[:n, :height, :width] = images
    page = page.reshape(rows, columns, *page.shape[1:]).transpose(0, 2, 1, 3, 4)
    whole = page.reshape(rows * (height + line), columns * (width + line), channels)
    return np.ascontiguousarray(whole[:-line, :-line])


def write_png(path: Path, image: Pixels, *, most: int | None = None) -> None:
    """Write an image [H, W, C] as a file that is there whole or not at all.

    Args:
        path: of the file; an existing one is replaced.
        image: 8 bits, 1, 3 or 4 channels.
        most: pixels along a side; larger images are scaled down to it.

    Raises:
        OSError: it cannot be written.
    """
    replace_file(path, png_bytes(image, most=most))


def png_bytes(image: Pixels, *, most: int | None = None) -> bytes:
    """An image [H, W, C] as the content of a PNG file."""
    from io import BytesIO

    from PIL import Image

    made = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if most is not None and max(made.size) > most:
        made.thumbnail((most, most))
    file = BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


def scatter(path: Path, points: Tensor, under: Tensor | None = None) -> None:
    """Points [n, 2], over others in grey, as a picture; at most 20,000 of each."""
    import matplotlib

    matplotlib.use("Agg")
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure((6, 6))
    axes = figure.add_subplot()
    if under is not None:
        some = under[:20_000].numpy()
        axes.scatter(some[:, 0], some[:, 1], s=4, c="0.7", linewidths=0, label="data")
    some = points[:20_000].numpy()
    axes.scatter(some[:, 0], some[:, 1], s=4, c="C0", linewidths=0, label="samples")
    axes.set_aspect("equal")
    axes.legend(loc="upper right")
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    replace_file(path, file.getvalue())
