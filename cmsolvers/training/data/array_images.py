"""Images in .npy and .npz files."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor


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
