"""Samples of a checkpoint, as an array and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.demo import digit_pictures
from cmsolvers.demo.compared_samplers import draw
from cmsolvers.training.data import Scale
from cmsolvers.training.models import load_model


@dataclass(frozen=True)
class Sampled:
    """The files that `sample_checkpoint` wrote, and what they cost.

    Attributes:
        count: of the samples.
        nfe: evaluations of the network.
        array: the .npy file.
        picture: the PNG.
    """

    count: int
    nfe: int
    array: Path
    picture: Path


def sample_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    sampler: str | None = None,
    steps: int = 18,
    levels: Sequence[float] = (),
    count: int = 100,
    offset: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> Sampled:
    """Write samples.npy, pixels [count, C, H, W], and samples.png, a grid of them.

    Args:
        checkpoint: folder of `cmsolvers train` or of the demo.
        out: folder for the results; it is made where it is missing.
        sampler: a name for `draw`; None is "heun" for score models, else "consistency".
        steps: of the sampler; not for consistency models.
        levels: for consistency models, where f is called after sigma_max.
        count: samples.
        offset: number of the first sample; sample 17 of a seed is the same in any run.
        seed: an int.
        progress: show a bar.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: no checkpoint of images, or options that do not fit its model.
    """
    model = load_model(checkpoint)
    spec = model.spec
    check.count("count", count)
    score = spec.row.model == "denoiser"
    if levels and score:
        raise ValueError("levels are for consistency models; this is a score model (see steps)")
    if "scale" not in model.about:
        raise ValueError(f"checkpoint must hold the scale of its images; {checkpoint} has none")
    scale = Scale.read(model.about["scale"])
    x, nfe = draw(
        sampler or ("heun" if score else "consistency"),
        model,
        noise.normal((count, *spec.shape), seed, offset=offset),
        steps,
        noise.key(seed, count, offset=offset),
        levels=[spec.sigma_max, *levels],
        progress=progress,
    )
    pixels = scale.to_pixels(x)
    out.mkdir(parents=True, exist_ok=True)
    made = Sampled(count, nfe, out / "samples.npy", out / "samples.png")
    np.save(made.array, pixels.numpy())
    digit_pictures.image_grid(made.picture, pixels, scale.low, scale.high)
    return made
