"""The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels, with a fixed held-out part."""

from __future__ import annotations

from functools import lru_cache

import torch

from cmsolvers import checks as check
from cmsolvers.training.data.missing_packages import missing
from cmsolvers.training.data.pixel_scale import Scale
from cmsolvers.training.data.stream_places import order_keys
from cmsolvers.training.data.tensor_data import TensorData

HELD_OUT = 360
SPLIT_SEED = 0
PARTS = ("train", "held")


def digits(part: str = "train", *, flip: bool = False) -> TensorData:
    """The digits as models see them: mean 0 and deviation 0.5 over the training part.

    Args:
        part: "train", 1,437 images, or "held", the 360 that are never trained on. The split belongs
            to the data: no seed changes it.
        flip: mirror at random.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: an unknown part.
    """
    check.choice("part", part, PARTS)
    rest, held = _parts()
    chosen = rest if part == "train" else held
    if not flip:
        return chosen
    return TensorData(
        chosen.x,
        chosen.labels,
        scale=chosen.scale,
        flip=flip,
        classes=10,
        class_names=chosen.class_names,
        source=chosen.source,
    )


@lru_cache(maxsize=1)
def _parts() -> tuple[TensorData, TensorData]:
    """The training digits and the held-out ones."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise missing("the digits", "sklearn (scikit-learn)", "demo") from error
    bunch = load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    chosen = order_keys(len(pixels), SPLIT_SEED, 0).argsort(stable=True)
    held, rest = chosen[:HELD_OUT], chosen[HELD_OUT:]
    scale = Scale.of(pixels[rest])
    x, names = scale.to_model(pixels), [str(digit) for digit in range(10)]
    first, second = (
        TensorData(
            x[rows], labels[rows], scale=scale, classes=10, class_names=names, source="digits"
        )
        for rows in (rest, held)
    )
    return first, second
