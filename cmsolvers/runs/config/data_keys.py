"""What a run is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from cmsolvers.runs.config.config_keys import MOST, Section, key


@dataclass(frozen=True)
class Data(Section):
    """What is trained on."""

    section = "data"
    about = "What is trained on. Keys that a kind of data does not have must be left out."

    source: str = key(
        "digits",
        "'digits'; 'toy:NAME' (two_moons, swiss_roll, eight_gaussians, checkerboard, spirals); a "
        "folder of pictures, classes by subfolder; an .npy or .npz file; a folder saved by the "
        "datasets library.",
        changes=True,
    )
    size: int | tuple[int, int] | None = key(
        None,
        "Pictures: rows and columns of a sample, one number or [rows, columns].",
        least=1,
        most=65536,
        example=32,
    )
    crop: str | None = key(
        None,
        "Pictures: what of them is cut out. Unset: center.",
        choices=("center", "random"),
        example="random",
    )
    flip: bool | None = key(
        None, "Mirror left to right with probability 1/2. Unset: false.", example=True
    )
    channels: int | None = key(
        None, "Pictures: 3, 1 or 4 channels. Unset: 3.", least=1, most=4, example=3
    )
    grey: bool | None = key(
        None, "Pictures with channels = 1: turn colours into grey. Unset: false.", example=True
    )
    scale: str | None = key(
        None,
        "What pixels become: 'minus_one_to_one', or 'data' (mean 0, deviation 0.5). Unset: the "
        "first for pictures, the second for arrays.",
        choices=("minus_one_to_one", "data"),
        example="data",
    )
    labels: bool | str | None = key(
        None,
        "A folder of pictures: whether subfolders are classes (unset: where there are two or "
        "more). An .npy file: the .npy file with its labels.",
        example=True,
    )
    skip_bad: bool | None = key(
        None,
        "Pictures: look through all of them first and leave out damaged ones. Unset: false.",
        example=True,
    )
    split: str | None = key(
        None, "A folder of datasets: which split. Unset: the only one, or train.", example="train"
    )
    image: str | None = key(
        None, "A folder of datasets: the column of images. Unset: the only one.", example="image"
    )
    label: str | None = key(
        None, "A folder of datasets: the column of labels. Unset: the only one.", example="label"
    )
    part: str | None = key(
        None, "Digits: 'train' or 'held'. Unset: train.", choices=("train", "held"), example="train"
    )
    n: int | None = key(
        None, "Toys: how many points. Unset: 100,000.", least=1, most=MOST, example=100_000
    )
    in_memory: int | None = key(
        None,
        "Arrays: an .npy file with more bytes is read at each step. Unset: 268,435,456.",
        least=0,
        changes=True,
        example=2**28,
    )
    workers: int = key(
        0,
        "Processes that read ahead, per process of the training; 0 for data in memory.",
        least=0,
        most=1024,
        changes=True,
    )
