"""What is known of data before they are read: their shape, by name, options or file header."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cmsolvers.runs.config.data_keys import Data
from cmsolvers.training.data import TrainingData, open_data
from cmsolvers.training.data.array_headers import headers
from cmsolvers.training.data.array_images import LABELS, layout
from cmsolvers.training.data.named_sources import DIGITS, TOY
from cmsolvers.training.data.toy_points import CLASSES, TOYS
from cmsolvers.training.named_options import known_name

OWN = ("source", "workers")
"""Keys that are not options of a kind of data."""


def data_options(keys: Data) -> dict[str, object]:
    """The options of a source that are set."""
    values = {one.name: getattr(keys, one.name) for one in dataclasses.fields(keys)}
    return {k: v for k, v in values.items() if k not in OWN and v is not None}


def opened_data(keys: Data) -> TrainingData:
    """The data of a configuration.

    Raises:
        OSError, TypeError, ValueError: as `open_data`, with the key named.
    """
    try:
        return open_data(keys.source, **data_options(keys))
    except (TypeError, ValueError) as error:
        raise type(error)(f"data: {error}") from error


def outlined_shape(keys: Data) -> tuple[int, ...]:
    """The shape of a sample, without a look at the samples.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: an unknown toy, a file that holds no samples, pictures without a size.
    """
    if keys.source == DIGITS:
        return 1, 8, 8
    if keys.source.startswith(TOY):
        known_name("data.source toy:NAME", keys.source.removeprefix(TOY), tuple(TOYS))
        return (2,)
    path = Path(keys.source)
    if path.is_file():
        return _array_shape(path)
    if path.is_dir():
        if keys.size is None:
            raise ValueError(
                f"data.size must be given for the pictures in {path}, such as data.size=32"
            )
        size = (keys.size, keys.size) if isinstance(keys.size, int) else keys.size
        return 3 if keys.channels is None else keys.channels, *size
    opened_data(keys)  # says what there is instead
    raise FileNotFoundError(f"data.source must be there; {path} is not")


def outlined_classes(keys: Data) -> int | None:
    """How many classes the labels have where the name says it."""
    if keys.source == DIGITS:
        return 10
    return CLASSES.get(keys.source.removeprefix(TOY))


def _array_shape(path: Path) -> tuple[int, ...]:
    found = headers(path)
    entry = next((name for name in LABELS if name in found), None)
    header = next((one for name, one in found.items() if name != entry), None)
    if header is None:
        raise ValueError(f"data: {path} must hold samples besides {entry}; it does not")
    kind = layout(header.shape, points=True)
    shape = tuple(header.shape[1:])
    if kind == "grey":
        return 1, *shape
    return (shape[2], *shape[:2]) if kind == "last" else shape
