"""The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels, with a fixed held-out part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.training.images import Scale, load_images

NAME = "digits"
"""What stands for these digits where a file of images may be named."""
HELD_OUT = 360
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images as models see them (mean 0, deviation 0.5), split once and for all.

    Attributes:
        train: [1437, 1, 8, 8].
        train_labels: [1437].
        held: [360, 1, 8, 8], never trained on.
        held_labels: [360].
        scale: back to pixels in 0..16.
    """

    train: Tensor
    train_labels: Tensor
    held: Tensor
    held_labels: Tensor
    scale: Scale


@lru_cache(maxsize=1)
def load() -> Digits:
    """The digits; the split belongs to the data and does not depend on the demo's seed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = noise.uniform((len(pixels), 1), SPLIT_SEED, stream=noise.OTHER, dtype=torch.float64)
    chosen = order[:, 0].argsort(stable=True)
    held, rest = chosen[:HELD_OUT], chosen[HELD_OUT:]
    scale = Scale.of(pixels[rest])
    x = scale.to_model(pixels)
    return Digits(x[rest], labels[rest], x[held], labels[held], scale)


def load_data(name: str) -> tuple[Tensor, Scale]:
    """Training images [n, C, H, W] as models see them, and their scale.

    Args:
        name: "digits" for the training digits, else the path of an .npy or .npz file.

    Raises:
        FileNotFoundError, ValueError: as `load_images`.
    """
    if name == NAME:
        data = load()
        return data.train, data.scale
    pixels = load_images(name)
    scale = Scale.of(pixels)
    return scale.to_model(pixels), scale
