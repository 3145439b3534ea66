"""A training on images as `cmsolvers train` runs it: a recipe, checked against its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.data import Scale
from cmsolvers.training.models import KINDS, Model, Spec
from cmsolvers.training.recipes import (
    consistency_trainer,
    default_settings,
    distillation_trainer,
    score_trainer,
    tuning_trainer,
)
from cmsolvers.training.trainer import Trainer

SMALL = 16
"""Images of fewer rows and columns get the "mlp", others the "unet"."""


def image_trainer(
    model: str,
    data: Tensor,
    scale: Scale,
    *,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float | None = None,
    seed: int = 0,
    network: str | None = None,
    sigma_max: float | None = None,
    teacher: Model | None = None,
    init: Model | None = None,
    about: Mapping[str, object] | None = None,
) -> Trainer:
    """The trainer of one of the four recipes; an argument that it would not read is refused.

    Args:
        model: "score", "cd" (distillation of `teacher`), "ct" or "ect" (tuning of `init`).
        data: [n, C, H, W] as models see them.
        scale: of the data; it goes into the checkpoint, so that samples become pixels again.
        steps: training steps; None is what the digits need.
        batch_size: samples per step; a smaller data set is one batch.
        lr: peak learning rate; None is what the digits need.
        seed: an int; decides everything random.
        network: "mlp" or "unet"; None chooses by the size of the images. Not for "cd" and
            "ect", which have that of the score model.
        sigma_max: the largest level; None is that of `Spec`. Not for "cd" and "ect".
        teacher: the score model that "cd" distils, and for no other model.
        init: the score model whose weights "ect" begins with, and for no other model.
        about: more for the description in checkpoints.

    Raises:
        ValueError: arguments that do not fit the model, or data that do not fit the score model.
    """
    check.choice("model", model, KINDS)
    settings = default_settings(
        model, steps, min(check.count("batch_size", batch_size), len(data)), seed
    )
    if lr is not None:
        settings = replace(settings, lr=lr)
    described = {"scale": asdict(scale), **(about or {})}
    begins = {"cd": ("teacher", teacher), "ect": ("init", init)}
    for kind, (name, score) in begins.items():
        if score is not None and model != kind:
            raise ValueError(
                f"{name} must be left out unless model is {kind!r}; got model {model!r}"
            )
    if model in begins:
        name, score = begins[model]
        for other, value in (("network", network), ("sigma_max", sigma_max)):
            if value is not None:
                raise ValueError(
                    f"{other} must not be given with model {model!r}, which takes that of its "
                    f"{name}; got {value!r}"
                )
        if score is None:
            raise ValueError(f"{name} must be a score model where model is {model!r}; got None")
        _check_scale(name, score, described["scale"])
        spec = replace(score.spec, kind=model)
        begin = distillation_trainer if model == "cd" else tuning_trainer
        return begin(spec, data, settings, score, about=described)
    shape = tuple(data.shape[1:])
    spec = Spec(model, shape, network or ("mlp" if max(shape[1:]) < SMALL else "unet"))
    if sigma_max is not None:
        spec = replace(spec, sigma_max=sigma_max)
    make = score_trainer if model == "score" else consistency_trainer
    return make(spec, data, settings, about=described)


def _check_scale(name: str, score: Model, scale: object) -> None:
    theirs = score.about.get("scale", scale)
    if theirs != scale:
        raise ValueError(
            f"data must be what {name} was trained on; its pixels had the scale "
            f"{theirs}, these have {scale}"
        )
