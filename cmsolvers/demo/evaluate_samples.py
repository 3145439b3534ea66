"""Numbers for samples in a file: with the demo's classifier for digits, on pixels for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cmsolvers.demo import digits
from cmsolvers.demo.demo_settings import DemoSettings
from cmsolvers.demo.judge import Judge, classifier_trainer
from cmsolvers.tasks import metrics
from cmsolvers.training.data import load_images


def evaluate_samples(
    samples: Path,
    data: str,
    out: Path,
    *,
    classifier: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> str:
    """Compare samples with data; what is found goes to metrics.json and is returned as its text.

    Args:
        samples: .npy or .npz file of pixels, as `cmsolvers sample` writes it.
        data: "digits" or a file of images.
        out: folder for metrics.json; it is made where it is missing.
        classifier: for digits, the checkpoint of a classifier; None trains one.
        seed: of that training.
        progress: show its bar.

    Raises:
        FileNotFoundError: no such file.
        ValueError: samples of another shape than the data, or fewer than two.
    """
    pixels = load_images(samples)
    real, scale = digits.load_data(data)
    x = scale.to_model(pixels)
    if x.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"samples must have the shape of the data, {list(real.shape[1:])}; "
            f"got {list(x.shape[1:])}"
        )
    if len(x) < 2:
        raise ValueError(f"samples must hold at least 2 images to be compared; got {len(x)}")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Mapping[str, object]]
    if data == digits.NAME:
        if classifier is None:
            classifier = out / "classifier"
            trainer = classifier_trainer(digits.load(), DemoSettings.classifier_steps, seed)
            trainer.run(progress=progress, description="classifier").save(classifier)
        judge = Judge.load(classifier, digits.load())
        with torch.no_grad():
            results = {"real": judge.baseline(), "samples": judge.numbers(x)}
    else:
        results = {"samples": _pixel_numbers(x, real)}
    text = json.dumps(results, indent=2)
    (out / "metrics.json").write_text(text + "\n")
    return text


def _pixel_numbers(x: Tensor, real: Tensor) -> dict[str, float]:
    near = metrics.nearest_distance(x, real)
    return {
        "frechet_pixels": metrics.frechet_distance(x.flatten(1), real.flatten(1)),
        "nearest": float(near.mean()),
        "nearest_smallest": float(near.min()),
    }
