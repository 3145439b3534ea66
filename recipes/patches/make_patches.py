"""Patches of scikit-learn's two photographs: train.npy and held.npy, uint8 [n, 32, 32, 3].

The photographs are halved in size (means of 2 x 2). Training patches lie in the left three quarters
of each, held-out ones in the right quarter: no pixel is in both. Places are drawn from a fixed
seed, so the files are the same on every machine.

    python make_patches.py OUT [--train 16384] [--held 2048]
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 32
LEFT = 0.75
"""Share of a photograph's columns that training patches are cut from."""

Pixels = NDArray[np.uint8]


def photographs() -> list[Pixels]:
    """China's temple and a flower, [213, 320, 3] each."""
    from sklearn.datasets import load_sample_images

    return [halved(np.asarray(image)) for image in load_sample_images().images]


def halved(image: Pixels) -> Pixels:
    """Means of 2 x 2 pixels, rounded half up; an odd last row or column is left out."""
    rows, columns = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    blocks = image[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, -1).astype(np.int64)
    made: Pixels = ((blocks.sum(axis=(1, 3)) + 2) // 4).astype(np.uint8)
    return made


def parts(image: Pixels) -> tuple[Pixels, Pixels]:
    """The columns of a photograph for training, and those that are held out."""
    border = int(image.shape[1] * LEFT)
    return image[:, :border], image[:, border:]


def patches(regions: list[Pixels], count: int, seed: int) -> Pixels:
    """`count` patches of the regions in turn, at random places: [count, SIZE, SIZE, C]."""
    random = np.random.default_rng(seed)
    made: list[Any] = []
    for i in range(count):
        region = regions[i % len(regions)]
        row = int(random.integers(region.shape[0] - SIZE + 1))
        column = int(random.integers(region.shape[1] - SIZE + 1))
        made.append(region[row : row + SIZE, column : column + SIZE])
    return np.stack(made)


def main() -> None:
    """Write both files."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder for train.npy and held.npy")
    parser.add_argument("--train", type=int, default=16384, help="patches to train on")
    parser.add_argument("--held", type=int, default=2048, help="held-out patches")
    options = parser.parse_args()
    if min(options.train, options.held) < 1:
        parser.error("--train and --held must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    both = [parts(image) for image in photographs()]
    for seed, (name, count) in enumerate((("train", options.train), ("held", options.held))):
        made = patches([pair[seed] for pair in both], count, seed)
        path = options.out / f"{name}.npy"
        np.save(path, made)
        print(f"{path}: {list(made.shape)}")


if __name__ == "__main__":
    main()
