"""Samples measured against data: distances of features, manifolds, nearest neighbours."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cmsolvers import checks as check
from cmsolvers.runs.evaluate import features as extractors
from cmsolvers.runs.evaluate.digit_classifier import STEPS, classifier_trainer, load_classifier
from cmsolvers.runs.evaluate.features import Features
from cmsolvers.runs.evaluate.sample_measures import Sets, all_measures, memorisation
from cmsolvers.runs.evaluate.sample_reading import open_samples
from cmsolvers.runs.sample.team import Team
from cmsolvers.training.checkpoints import disk, replace_file
from cmsolvers.training.data import TensorData, TrainingData, digits, open_data
from cmsolvers.training.data.array_headers import memory_bytes, sized
from cmsolvers.training.picture_pages import CHANNELS, LARGEST, pixels_of, scatter, tiles, write_png

DIGITS = "digits"
SHOWN = 10
"""Rows of the picture, of the first samples and of those nearest to data."""
IN_PIXELS = 2**28
"""Values of a set, up to which nearest neighbours are looked for among pixels."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and how.

    Attributes:
        samples: the folder of `cmsolvers sample`, a folder of pictures, an .npy or .npz file.
        data: see `open_data`; usually what the model was trained on.
        held: data that it was not trained on; None: of "digits" its held-out part, else none.
        options: of `data` and `held`, such as size = 32.
        features: "pixels", "classifier" (digits), "inception" or "package.module:function"; None
            is "classifier" for digits and "pixels" for others.
        weights: of "inception", a local file.
        classifier: of "classifier", a checkpoint; None: it is trained into the folder of results,
            once.
        num: samples, and data, that are used at most: the first ones.
        batch: samples at once while features are made.
        device: of the features; None is a GPU where there is one.
        seed: of everything random.
    """

    samples: Path
    data: str = DIGITS
    held: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    features: str | None = None
    weights: Path | None = None
    classifier: Path | None = None
    num: int | None = None
    batch: int = 256
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num is not None:
            check.count("num", self.num, least=2)
        check.count("batch", self.batch)
        check.count("seed", self.seed, least=0, most=2**63 - 1)
        if self.features is not None:
            extractors.check_name(self.features)


def evaluate(given: EvaluationSettings, out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Measure samples against data; what is found goes to `out`/metrics.json and is returned.

    Beside it: `neighbours.png`, samples and their nearest data (points: `points.png`, both sets).

    Args:
        given: what is measured.
        out: folder for the results; it is made where it is missing.
        progress: show bars.

    Raises:
        OSError: a file that is missing or cannot be read.
        ValueError: samples that do not fit the data, damaged files, fewer than two samples, values
            that are not finite.
    """
    begun = time.monotonic()
    data = open_data(given.data, **given.options)
    held = _held(given)
    samples = open_samples(given.samples, data)
    named: dict[str, TrainingData | None] = {"samples": samples, "data": data, "held": held}
    for name, one in named.items():
        if one is not None and min(len(one), given.num or len(one)) < 2:
            raise ValueError(f"{name} must hold at least 2 to be compared; got {len(one)}")
    if held is not None and tuple(held.shape) != tuple(data.shape):
        raise ValueError(f"held must have shape {list(data.shape)}; got {list(held.shape)}")
    features = _features(given, data, out, progress)
    rows = {
        name: None if one is None else _rows(one, features, given, name, progress)
        for name, one in named.items()
    }
    x, real = rows["samples"], rows["data"]
    assert x is not None and real is not None
    sets = Sets(x, real, rows["held"], given.seed)
    measured = all_measures(sets, features)
    near, space = _neighbours_space(given, named, sets, features, progress)
    memory, distances, found = memorisation(near)
    disk.make_folders(out)
    picture = _picture(out, samples, data, distances, found)
    results: dict[str, Any] = {
        "samples": {"path": str(given.samples), "count": len(x), "shape": list(samples.shape)},
        "data": {"source": given.data, "count": len(real), "fingerprint": data.fingerprint},
        "held_out": None if rows["held"] is None else {"count": len(rows["held"])},
        "features": {"name": features.name, "dimension": x.shape[1], **features.about},
        "metrics": measured,
        "nearest": {"space": space, **memory},
        "picture": None if picture is None else picture.name,
        "seconds": round(time.monotonic() - begun, 3),
    }
    replace_file(out / "metrics.json", json.dumps(results, indent=2) + "\n")
    return results


def _held(given: EvaluationSettings) -> TrainingData | None:
    if given.held is not None:
        return open_data(given.held, **given.options)
    part = given.options.get("part", "train")
    return digits("held") if given.data == DIGITS and part == "train" else None


def _features(given: EvaluationSettings, data: TrainingData, out: Path, progress: bool) -> Features:
    name = given.features or (extractors.CLASSIFIER if given.data == DIGITS else extractors.PIXELS)
    if given.weights is not None and name != extractors.INCEPTION:
        raise ValueError(f"weights must be left out for features {name!r}")
    if given.classifier is not None and name != extractors.CLASSIFIER:
        raise ValueError(f"classifier must be left out for features {name!r}")
    if name == extractors.PIXELS:
        return extractors.pixels()
    if name == extractors.CLASSIFIER:
        if given.data != DIGITS:
            raise ValueError("features must be others than 'classifier', which knows digits alone")
        return extractors.of_classifier(load_classifier(_classifier(given, out, progress)))
    device = Team().device(given.device)
    if name == extractors.INCEPTION:
        return extractors.inception(given.weights, data.scale, device)
    return extractors.own(name, data.scale, device)


def _classifier(given: EvaluationSettings, out: Path, progress: bool) -> Path:
    """The folder of the classifier, which is trained where there is none."""
    if given.classifier is not None:
        return given.classifier
    path = out / f"classifier-{given.seed}"
    if not path.is_dir():
        train = digits("train")
        assert isinstance(train, TensorData)
        disk.make_folders(out)
        trainer = classifier_trainer(train, STEPS, given.seed)
        trainer.run(progress=progress, description="classifier").save(path)
    return path


def _rows(
    data: TrainingData, features: Features, given: EvaluationSettings, name: str, progress: bool
) -> Tensor:
    """Features of a set, [n, d]; images are read batch by batch."""
    n = min(len(data), given.num or len(data))
    made: Tensor | None = None
    with tqdm(total=n, desc=f"features of {name}", disable=not progress, leave=False) as bar:
        for start in range(0, n, given.batch):
            index = torch.arange(start, min(start + given.batch, n))
            x, _ = data.samples(index, seed=given.seed, step=0)
            part = features(x)
            if made is None:
                needed = n * part.shape[1] * part.element_size()
                if needed > memory_bytes() // 4:
                    raise ValueError(
                        f"num must be smaller: {n:,} rows of {part.shape[1]:,} features take "
                        f"{sized(needed)}, more than a quarter of the memory"
                    )
                made = torch.empty(n, part.shape[1])
            made[start : start + len(part)] = part
            bar.update(len(part))
    assert made is not None
    return made


def _neighbours_space(
    given: EvaluationSettings,
    named: Mapping[str, TrainingData | None],
    sets: Sets,
    features: Features,
    progress: bool,
) -> tuple[Sets, str]:
    """Where nearest neighbours are looked for: among pixels if they are few, else features."""
    known = [one for one in named.values() if one is not None]
    size = max(len(one) * int(np.prod(one.shape)) for one in known)
    if features.name == extractors.PIXELS or size > IN_PIXELS:
        return sets, features.name
    pixels = extractors.pixels()
    rows = [
        None if one is None else _rows(one, pixels, given, name, progress)
        for name, one in named.items()
    ]
    assert rows[0] is not None and rows[1] is not None
    return Sets(rows[0], rows[1], rows[2], given.seed), pixels.name


def _picture(
    out: Path, samples: TrainingData, data: TrainingData, distances: Tensor, rows: Tensor
) -> Path | None:
    """Samples beside their nearest data: the first ones, and to the right the most suspicious."""

    def read(source: TrainingData, index: Tensor) -> Tensor:
        return source.samples(index, seed=0, step=0)[0]

    if len(data.shape) == 3 and data.shape[0] in CHANNELS and data.scale is not None:
        blocks = []
        for chosen in (torch.arange(min(SHOWN, len(rows))), distances.argsort()[:SHOWN]):
            some = [
                pixels_of(torch.cat((read(samples, i[None]), read(data, rows[i]))), data.scale)
                for i in chosen
            ]
            blocks.append(np.stack(some))
        gap = np.full_like(blocks[0][:, :1], 255)
        page = np.concatenate((blocks[0], gap, blocks[1]), axis=1)
        path = out / "neighbours.png"
        write_png(path, tiles(page.reshape(-1, *page.shape[2:]), page.shape[1]), most=LARGEST)
        return path
    if tuple(data.shape) == (2,):
        path = out / "points.png"
        count = min(len(samples), len(data), 5000)
        both = [read(one, torch.arange(count)) for one in (samples, data)]
        try:
            scatter(path, both[0], both[1])
        except ModuleNotFoundError:  # matplotlib
            return None
        return path
    return None


def table(results: Mapping[str, Any]) -> str:
    """The results as lines of text."""
    features, nearest = results["features"], results["nearest"]
    lines = [
        f"{results['samples']['count']:,} samples against {results['data']['count']:,} of "
        f"{results['data']['source']}, in {features['name']} ({features['dimension']} numbers)"
    ]
    for name, row in results["metrics"].items():
        error = row.get("standard_error")
        text = f"{row['value']:.4g}" + (f" +- {error:.2g}" if error is not None else "")
        beside = next((f"{key} {row[key]:.4g}" for key in ("held_out", "halves") if key in row), "")
        lines.append(f"{name:20} {text:22} {beside.replace('_', '-')}".rstrip())
    beside = "held_out" if "held_out" in nearest else "other_data"
    mine, usual = nearest["samples"], nearest[beside]
    lines.append(
        f"{'nearest data':20} {mine['median']:<22.4g} {beside.replace('_', '-')} "
        f"{usual['median']:.4g} (medians; smallest {mine['smallest']:.3g}, {usual['smallest']:.3g})"
    )
    return "\n".join(lines)
