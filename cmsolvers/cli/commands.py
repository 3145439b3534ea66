"""What each command of the command line does."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.demo import digits
from cmsolvers.demo.judge import Judge, classifier_trainer
from cmsolvers.demo.methods import draw
from cmsolvers.demo.run_demo import run_demo
from cmsolvers.demo.settings import DemoSettings
from cmsolvers.engine import catalogue
from cmsolvers.ops import build_info
from cmsolvers.tasks import metrics
from cmsolvers.training.images import Scale, load_images
from cmsolvers.training.recipes import (
    Model,
    Spec,
    consistency_trainer,
    default_settings,
    distillation_trainer,
    load_model,
    score_trainer,
)


def demo(options: Namespace) -> int:
    """The main job."""
    settings = DemoSettings.tiny(options.seed) if options.tiny else DemoSettings(options.seed)
    results = run_demo(options.out, settings, workers=options.workers, progress=not options.quiet)
    for target in results["targets"]:
        state = "kept  " if target["kept"] else "MISSED"
        print(
            f"{state} {target['what']}: {target['value']:.4g} {target['relation']} "
            f"{target['bound']:.4g}"
        )
    print(f"report: {options.out / 'report.html'}")
    return int(options.check and not all(target["kept"] for target in results["targets"]))


def _data(name: str) -> tuple[Tensor, Scale]:
    if name == "digits":
        data = digits.load()
        return data.train, data.scale
    pixels = load_images(name)
    scale = Scale.of(pixels)
    return scale.to_model(pixels), scale


def train(options: Namespace) -> int:
    """Train a score model, or a consistency model by distillation or from scratch.

    Raises:
        FileExistsError: there is a checkpoint already, and neither --resume nor --overwrite.
    """
    teacher = _teacher(options)
    data, scale = _data(options.data)
    settings = default_settings(
        options.model, options.steps, min(options.batch, len(data)), options.seed
    )
    if options.lr is not None:
        settings = replace(settings, lr=options.lr)
    shape = tuple(data.shape[1:])
    about = {"scale": asdict(scale), "data": Path(options.data).name}
    network = options.network or ("mlp" if max(shape[1:]) < 16 else "unet")
    if teacher is not None:
        if teacher.about.get("scale", about["scale"]) != about["scale"]:
            raise ValueError(
                "--data must be what the teacher was trained on; its pixels had the scale "
                f"{teacher.about['scale']}, these have {about['scale']}"
            )
        spec = replace(teacher.spec, kind="cd")
        trainer = distillation_trainer(spec, data, settings, teacher, about=about)
    else:
        spec = Spec(options.model, shape, network)
        if options.sigma_max is not None:
            spec = replace(spec, sigma_max=options.sigma_max)
        make = score_trainer if spec.kind == "score" else consistency_trainer
        trainer = make(spec, data, settings, about=about)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.model}.safetensors"
    if options.resume:
        trainer.load(path)
    elif path.exists() and not options.overwrite:
        raise FileExistsError(
            f"--out must hold no checkpoint of this model; {path} is one: "
            "give --resume to go on from it or --overwrite to start anew"
        )
    try:
        trainer.run(
            checkpoint=path,
            every=options.every,
            progress=not options.quiet,
            description=f"training {options.model}",
        )
    except KeyboardInterrupt:
        print(f"at step {trainer.step}; --resume goes on from {path}", file=sys.stderr)
        raise
    print(f"{trainer.step} steps; checkpoint: {path}")
    return 0


def _teacher(options: Namespace) -> Model | None:
    """The teacher where there is to be one; options that would go unread are refused."""
    if options.model != "cd":
        if options.teacher is not None:
            raise ValueError(f"--teacher is for --model cd; got --model {options.model}")
        return None
    if options.teacher is None:
        raise ValueError("--teacher must name a score checkpoint where --model is cd")
    for name in ("network", "sigma_max"):
        if getattr(options, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} must not be given with --model cd, whose model is the teacher's; "
                f"got {getattr(options, name)}"
            )
    return load_model(options.teacher)


def sample(options: Namespace) -> int:
    """Sample a checkpoint: samples.npy holds pixels [n, C, H, W], samples.png a grid of them."""
    # Here, so that the other commands need no matplotlib.
    from cmsolvers.demo import pictures

    model = load_model(options.checkpoint)
    spec, count = model.spec, check.count("count", options.count)
    if options.levels and spec.kind == "score":
        raise ValueError("--levels is for consistency models; this is a score model (see --steps)")
    if "scale" not in model.about:
        raise ValueError(
            f"checkpoint must hold the scale of its images; {options.checkpoint} has none"
        )
    scale = Scale(**model.about["scale"])
    sampler = options.sampler or ("heun" if spec.kind == "score" else "consistency")
    z = noise.normal((count, *spec.shape), options.seed, offset=options.offset)
    x, nfe = draw(
        sampler,
        model,
        z,
        options.steps,
        noise.key(options.seed, count, offset=options.offset),
        levels=[spec.sigma_max, *options.levels],
        progress=not options.quiet,
    )
    pixels = scale.to_pixels(x)
    options.out.mkdir(parents=True, exist_ok=True)
    np.save(options.out / "samples.npy", pixels.numpy())
    pictures.image_grid(options.out / "samples.png", pixels, scale.low, scale.high)
    print(f"{len(pixels)} samples, NFE {nfe}: {options.out / 'samples.png'}")
    return 0


def evaluate(options: Namespace) -> int:
    """Metrics of samples, to metrics.json: features of a classifier for digits, else pixels."""
    pixels = load_images(options.samples)
    data, scale = _data(options.data)
    x = scale.to_model(pixels)
    if x.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"samples must have the shape of the data, {list(data.shape[1:])}; "
            f"got {list(x.shape[1:])}"
        )
    if len(x) < 2:
        raise ValueError(f"samples must hold at least 2 images to be compared; got {len(x)}")
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any]
    if options.data == "digits":
        path = options.classifier or options.out / "classifier.safetensors"
        if options.classifier is None:
            classifier_trainer(digits.load(), DemoSettings.classifier_steps, options.seed).run(
                checkpoint=path, progress=not options.quiet, description="classifier"
            )
        judge = Judge.load(path, digits.load())
        with torch.no_grad():
            results = {"real": judge.baseline(), "samples": judge.numbers(x)}
    else:
        near = metrics.nearest_distance(x, data)
        results = {
            "samples": {
                "frechet_pixels": metrics.frechet_distance(x.flatten(1), data.flatten(1)),
                "nearest": float(near.mean()),
                "nearest_smallest": float(near.min()),
            }
        }
    text = json.dumps(results, indent=2)
    (options.out / "metrics.json").write_text(text + "\n")
    print(text)
    return 0


def solvers(options: Namespace) -> int:
    """The catalogue of solvers as a Markdown table."""
    print(catalogue.table())
    return 0


def precision(options: Namespace) -> int:
    """Work against precision of every sampler: precision.json and precision.png."""
    from tqdm import tqdm

    from cmsolvers.demo import precision as work
    from cmsolvers.demo import precision_plot

    problem = work.Problem(check.count("count", options.count, least=2), options.seed)
    with tqdm(total=len(work.shown_solvers()), disable=options.quiet) as bar:
        points = work.measure(problem, lambda name: (bar.set_description(name), bar.update()))
    options.out.mkdir(parents=True, exist_ok=True)
    work.save(options.out / "precision.json", points, problem)
    print(precision_plot.draw(options.out / "precision.png", points, problem))
    return 0


def info(options: Namespace) -> int:
    """What was built, for what, and which instruction set is in use."""
    facts = build_info()
    if options.json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        print(f"{name.replace('_', ' '):{width}}  {text}")
    return 0
