"""The demo's long parts as jobs: pure functions of their arguments and of checkpoint files.

Every job runs on one thread, so that its result does not depend on how many cores there are; two
jobs run side by side, each in its own process. On two cores that is also faster than one job on
two threads: networks this small spend much of the time waiting at the end of each parallel region.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmsolvers.demo import digits
from cmsolvers.demo.compared_samplers import draw, latents
from cmsolvers.demo.demo_results import Training
from cmsolvers.demo.demo_settings import SHAPE, DemoSettings, Files
from cmsolvers.demo.judge import Judge, classifier_trainer
from cmsolvers.demo.loss_by_level import LossByLevel
from cmsolvers.schedules import exponential_sigmas
from cmsolvers.training import TrainingSettings
from cmsolvers.training.models import Model, Spec, load_model
from cmsolvers.training.recipes import (
    consistency_trainer,
    default_settings,
    distillation_trainer,
    score_trainer,
    tuning_trainer,
)
from cmsolvers.training.trainer import Trainer

Outcome: TypeAlias = dict[str, Training]
"""The trainings of a job, by the kind of model."""
Pixels: TypeAlias = NDArray[np.float32]


def train_score(files: Files, settings: DemoSettings, progress: bool) -> Outcome:
    """The score model."""
    course = _course("score", settings.score_steps, settings)
    trainer = score_trainer(_spec("score", settings), digits.load().train, course, _about())
    return _train(trainer, files, "score", progress, "score model", 0)


def train_judge_and_consistency(files: Files, settings: DemoSettings, progress: bool) -> Outcome:
    """The classifier, then consistency training from scratch."""
    data = digits.load()
    judge = classifier_trainer(data, settings.classifier_steps, settings.seed)
    outcome = _train(judge, files, "classifier", progress, "classifier", 1)
    course = _course("ct", settings.ct_steps, settings)
    trainer = consistency_trainer(_spec("ct", settings), data.train, course, about=_about())
    return outcome | _train(trainer, files, "ct", progress, "consistency training", 1)


def distil(files: Files, settings: DemoSettings, progress: bool) -> Outcome:
    """Consistency distillation from the score model's checkpoint."""
    data, teacher = digits.load().train, load_model(files.model("score"))
    course = _course("cd", settings.cd_steps, settings)
    noted = LossByLevel()
    trainer = distillation_trainer(
        _spec("cd", settings), data, course, teacher, about=_about(), monitors=[noted]
    )
    outcome = _train(trainer, files, "cd", progress, "consistency distillation", 0)
    outcome["cd"]["bands"] = noted.bands
    return outcome


def tune(files: Files, settings: DemoSettings, progress: bool) -> Outcome:
    """Easy consistency tuning from the score model's checkpoint."""
    data, init = digits.load().train, load_model(files.model("score"))
    course = _course("ect", settings.ect_steps, settings)
    trainer = tuning_trainer(_spec("ect", settings), data, course, init, about=_about())
    return _train(trainer, files, "ect", progress, "easy consistency tuning", 1)


def _about() -> dict[str, object]:
    return {"scale": asdict(digits.load().scale), "data": digits.NAME}


def _spec(kind: str, settings: DemoSettings) -> Spec:
    return Spec(kind, SHAPE, options={"width": settings.width})


def _course(kind: str, steps: int, settings: DemoSettings) -> TrainingSettings:
    return default_settings(kind, steps, 128, settings.seed)


def _train(
    trainer: Trainer, files: Files, kind: str, progress: bool, label: str, position: int
) -> Outcome:
    start = time.perf_counter()
    trainer.run(progress=progress, description=label, position=position).save(files.model(kind))
    return {kind: {"losses": trainer.history, "seconds": time.perf_counter() - start}}


@lru_cache(maxsize=8)
def _model(files: Files, kind: str) -> Model:
    return load_model(files.model(kind))


def search_levels(files: Files, kind: str, settings: DemoSettings) -> list[list[float]]:
    """Levels for 1 to 4 steps; each adds the one level that gives the smallest Fréchet distance.

    The distance is that of samples of another seed to the training digits: the held-out digits and
    the samples of the report have no part in the choice.
    """
    model, judge = _model(files, kind), Judge.load(files.model("classifier"), digits.load())
    seed = settings.seed + 1000
    z = latents(SHAPE, settings.samples, seed)
    grid = exponential_sigmas(settings.candidates, 0.1, 8.0, append_zero=False).tolist()
    chosen = [[model.spec.sigma_max]]
    for steps in (2, 3, 4):
        tried = []
        for level in (round(s, 3) for s in grid):
            if level not in chosen[-1]:
                levels = sorted([*chosen[-1], level], reverse=True)
                x, _ = draw(kind, model, z, steps, seed, levels=levels)
                tried.append((judge.frechet(x, to_train=True), levels))
        chosen.append(min(tried)[1])
    return chosen


def sample(
    files: Files,
    key: str,
    kind: str,
    steps: int,
    n: int,
    seed: int,
    levels: Sequence[float] | None,
) -> tuple[Pixels, int, float]:
    """(samples, NFE, seconds) of one sampler; the first call, on two samples, is not timed."""
    model, z = _model(files, kind), latents(SHAPE, n, seed)
    draw(key, model, z[:2], steps, seed, levels=levels)
    start = time.perf_counter()
    x, nfe = draw(key, model, z, steps, seed, levels=levels)
    return x.numpy(), nfe, time.perf_counter() - start


def as_tensor(samples: Pixels) -> Tensor:
    """What `sample` returned, as a tensor."""
    return torch.from_numpy(samples)
