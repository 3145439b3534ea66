"""Samples from files, in the scale of the data that they are compared with."""

from __future__ import annotations

import json
from pathlib import Path

from cmsolvers.runs.sample.sidecar import NAME as SIDECAR
from cmsolvers.training.data import Scale, TrainingData, array_file, image_folder
from cmsolvers.training.data.array_headers import headers
from cmsolvers.training.data.picture_decoding import ENDINGS
from cmsolvers.training.data.pictures import in_threads

AS_THEY_ARE = Scale(0.0, 0.5, -1.0, 1.0)
"""What leaves values unchanged."""


def open_samples(path: Path, data: TrainingData) -> TrainingData:
    """Samples as a model of the data would see them.

    8-bit values are pictures: 0 and 255 are the ends of the data's range. Other numbers count in
    the data's own units, pixels where the data have a scale.

    Args:
        path: the folder of `cmsolvers sample`, a folder of pictures, an .npy or .npz file.
        data: what they are compared with.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: an unfinished run, another size than that of the data, a damaged file, values
            that are not finite.
    """
    scale = None if data.scale is None else eight_bits(data.scale)
    if path.is_dir():
        place, scale = _in_run(path, data.scale)
        found = (
            array_samples(place, data, scale) if place.is_file() else _pictures(place, data, scale)
        )
    elif path.is_file():
        found = array_samples(path, data, scale)
    else:
        raise FileNotFoundError(f"samples must be a folder or an .npy or .npz file; got {path}")
    if tuple(found.shape) != tuple(data.shape):
        raise ValueError(
            f"samples must have the shape of the data, {list(data.shape)}; {path} has "
            f"{list(found.shape)}"
        )
    return found


def _in_run(path: Path, scale: Scale | None) -> tuple[Path, Scale | None]:
    """Where the samples of a run's folder are, another folder itself; and the scale of 8 bits.

    A run says what 0 and 255 stand for, in the units of the data that its model was trained on.
    """
    sidecar = path / SIDECAR
    if not sidecar.is_file():
        return path, None if scale is None else eight_bits(scale)
    try:
        about = json.loads(sidecar.read_text())
    except ValueError as error:
        raise ValueError(f"{sidecar} must be JSON: {error}") from error
    if not isinstance(about, dict) or not about.get("complete"):
        raise ValueError(
            f"{path} must hold all of its samples; its run has not ended: start the command in "
            f"{SIDECAR} again"
        )
    ends = about.get("settings", {}).get("pixels")
    if scale is not None and isinstance(ends, dict):
        scale = Scale(scale.mean, scale.std, float(ends["low"]), float(ends["high"]))
    array = path / "samples.npz"
    place = array if array.is_file() else path / "images"
    return place, None if scale is None else eight_bits(scale)


def eight_bits(scale: Scale) -> Scale:
    """The scale of pictures in which 0 and 255 stand for the ends of another scale."""
    factor = 255.0 / (scale.high - scale.low)
    return Scale((scale.mean - scale.low) * factor, scale.std * factor, 0.0, 255.0)


def array_samples(path: Path, data: TrainingData, of_bytes: Scale | None) -> TrainingData:
    """Samples in an .npy or .npz file, 8 bits in the scale `of_bytes`."""
    first = next(iter(headers(path).values()))
    scale = AS_THEY_ARE if data.scale is None else data.scale
    if first.dtype.kind == "u" and first.dtype.itemsize == 1 and of_bytes is not None:
        scale = of_bytes
    return array_file(path, scale=scale)


def _pictures(path: Path, data: TrainingData, of_bytes: Scale | None) -> TrainingData:
    shape = data.shape
    if len(shape) != 3 or of_bytes is None:
        raise ValueError(
            f"samples must be an .npy or .npz file where data have shape {list(shape)}; got {path}"
        )
    channels, height, width = shape
    _check_sizes(path, height, width)
    return image_folder(path, (height, width), channels=channels, scale=of_bytes, labels=False)


def _check_sizes(path: Path, height: int, width: int) -> None:
    """A sample of another size would be cut or scaled, which no measure would notice."""
    from PIL import Image

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)

    def check(i: int) -> None:
        try:
            with Image.open(files[i]) as image:
                size = image.size
        except Exception as error:  # Pillow's readers raise errors of many kinds
            raise ValueError(f"{files[i]} is no whole picture: {error}") from error
        if size != (width, height):
            raise ValueError(
                f"samples must have the size of the data, {width} x {height} pixels; {files[i]} "
                f"has {size[0]} x {size[1]}"
            )

    in_threads(check, range(len(files)))
