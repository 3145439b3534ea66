"""Images as training data: loading, and the scale in which models see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Scale:
    """Models see (pixel - mean) / std * 0.5, so the data has mean 0 and deviation 0.5.

    Attributes:
        mean: of all pixels of the training images.
        std: of all pixels of the training images.
        low: smallest pixel value.
        high: largest pixel value.
    """

    mean: float
    std: float
    low: float
    high: float

    @staticmethod
    def of(pixels: Tensor) -> Scale:
        """The scale that gives these training images mean 0 and deviation 0.5.

        Raises:
            ValueError: images of a single colour.
        """
        std = float(pixels.double().std())
        if not std > 0:
            raise ValueError(f"images must not all be of one colour; got standard deviation {std}")
        return Scale(float(pixels.double().mean()), std, float(pixels.min()), float(pixels.max()))

    @staticmethod
    def read(about: object) -> Scale:
        """The scale that a checkpoint describes as `dataclasses.asdict(scale)`.

        Raises:
            ValueError: about describes no scale.
        """
        try:
            if isinstance(about, dict):
                return Scale(**about)
        except TypeError:
            pass
        raise ValueError(f"scale must be a dict with mean, std, low and high; got {about!r}")

    def to_model(self, pixels: Tensor) -> Tensor:
        """Pixels -> what models see, float32."""
        return ((pixels.double() - self.mean) / self.std * SIGMA_DATA).float()

    def to_pixels(self, x: Tensor) -> Tensor:
        """What models return -> pixels in [low, high], float32."""
        return (x.double() / SIGMA_DATA * self.std + self.mean).clamp(self.low, self.high).float()


def load_images(path: str | Path) -> Tensor:
    """Images from a .npy file, or the first array of a .npz file, as float32 [n, C, H, W].

    Accepts [n, H, W], [n, C, H, W] and [n, H, W, C] (1, 3 or 4 channels, fewer than rows);
    integers or floats.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, another shape, entries that are no numbers or not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"data must be an .npy or .npz file; there is none at {path}")
    try:
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            array = array[array.files[0]]
    except (ValueError, OSError, EOFError, IndexError, BadZipFile) as error:
        raise ValueError(f"data must be an .npy or .npz file of numbers; {path} is not") from error
    if array.dtype.kind not in "uif":
        raise ValueError(f"images must be numbers; got dtype {array.dtype}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3, 4) and array.shape[3] < array.shape[1]:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or 0 in array.shape:
        raise ValueError(
            f"images must have shape [n, H, W], [n, C, H, W] or [n, H, W, C]; got {array.shape}"
        )
    images = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not bool(images.isfinite().all()):
        raise ValueError("images must be finite; got nan or inf")
    return images
