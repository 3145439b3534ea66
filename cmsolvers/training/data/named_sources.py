"""Data by their name: what is there decides how they are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cmsolvers import checks as check
from cmsolvers.training.data.array_images import array_file
from cmsolvers.training.data.data_protocol import TrainingData
from cmsolvers.training.data.digit_data import digits
from cmsolvers.training.data.picture_folder import image_folder
from cmsolvers.training.data.saved_datasets import arrow_folder, is_arrow_folder
from cmsolvers.training.data.toy_points import TOYS, toys

TOY = "toy:"
DIGITS = "digits"


def open_data(source: str, **options: Any) -> TrainingData:
    """The data that a name stands for.

    Args:
        source: "digits"; "toy:NAME" (see `toys`); an .npy or .npz file (`array_file`); a folder
            saved by `datasets` (`arrow_folder`); a folder of pictures (`image_folder`).
        **options: of that function.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: an option that such data do not have, or as the function says.
    """
    if not isinstance(source, (str, Path)):
        raise TypeError(f"data must be a name or a path; got {check.describe(source)}")
    name = str(source)
    if name == DIGITS:
        return _called(digits, name, options)
    if name.startswith(TOY):
        return _called(toys, name, options, name.removeprefix(TOY))
    path = Path(name)
    if path.is_file():
        return _called(array_file, name, options, path)
    if is_arrow_folder(path):
        return _called(arrow_folder, name, options, path)
    if path.is_dir():
        return _called(image_folder, name, options, path)
    known = [DIGITS, *(TOY + toy for toy in TOYS)]
    near = get_close_matches(name, [*known, *TOYS], 1)
    hint = f" ({near[0] if near[0] in known else TOY + near[0]}?)" if near else ""
    raise FileNotFoundError(
        f"data must be 'digits', 'toy:NAME', an .npy or .npz file or a folder; "
        f"there is nothing at {name}{hint}"
    )


def _called(
    function: Callable[..., TrainingData], name: str, options: dict[str, Any], *first: object
) -> TrainingData:
    """The data, or an error that names the option."""
    parameters = list(inspect.signature(function).parameters.values())[len(first) :]
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, 1)
            raise ValueError(
                f"{option} is no option of data {name}, which takes {', '.join(known)}"
                + (f": {near[0]}?" if near else "")
            )
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ValueError(f"{parameter.name} must be given for data {name}")
    return function(*first, **options)
