"""Data by their name: what is there decides how they are read."""

from __future__ import annotations

from cmsolvers.training.data.array_images import load_images
from cmsolvers.training.data.digit_data import digits
from cmsolvers.training.data.pixel_scale import Scale
from cmsolvers.training.data.tensor_data import TensorData
from cmsolvers.training.data.training_data import TrainingData


def open_data(source: str) -> TrainingData:
    """The data that a name stands for: "digits", or an .npy or .npz file."""
    if source == "digits":
        return digits()
    pixels = load_images(source)
    scale = Scale.of(pixels)
    return TensorData(scale.to_model(pixels), scale=scale)
