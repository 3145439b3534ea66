"""Trainings that work as they stand: score model, distillation, consistency training, tuning.

What mattered for consistency training from scratch (8 x 8 digits, 1,500 steps, measured one change
at a time; numbers in docs/training.md):

1. Start with very few levels. With 2 pairs the target is nearly the clean sample, so the first
   steps learn a denoiser; doubling the pairs to 64 then only has to carry that along the
   trajectory. Starting at 10 (made for runs a hundred times longer) leaves noise in the output:
   middle levels never see a clean target.
2. Weights 1 / (sigma - sigma_next): without them the largest levels, whose steps are widest,
   decide the gradient.
3. The same z at both levels. With different noise everything collapses to the mean image.
4. The rate falls to 0, and an average of the last tenth of the run is what samples.

And for easy consistency tuning (700 steps):

1. Weights 1 / (t - r), again.
2. Begin with the score model. From random weights the same course leaves noise in the output.
3. Bring the pairs closer in stages. At the last gap from the start it depends on the learning rate
   whether the run arrives at all. Fewer stages end in smoother samples, more in noisier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256

from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.losses import (
    DoublingPairs,
    ECTPairs,
    LogNormal,
    LossOutput,
    UniformPairs,
    cd,
    dsm,
    ect,
    ict,
    pseudo_huber,
)
from cmsolvers.schedules import karras_sigmas
from cmsolvers.training.averages import EMA
from cmsolvers.training.data import Batch, TrainingData, as_data
from cmsolvers.training.model_wrappers import Function
from cmsolvers.training.models import KINDS, Model, Spec
from cmsolvers.training.reports import Monitor
from cmsolvers.training.trainer import Trainer
from cmsolvers.training.training_settings import TrainingSettings


def score_trainer(
    spec: Spec,
    data: Tensor | TrainingData,
    settings: TrainingSettings,
    about: Mapping[str, object] | None = None,
) -> Trainer:
    """Denoising score matching with EDM weights and lognormal levels (-1.0, 1.4).

    Raises:
        ValueError: data of another shape than the model's.
    """
    _check_shape(spec, data)
    network, wrapped = spec.build(settings.seed), _wrapping(spec)
    levels = LogNormal(-1.0, 1.4, spec.sigma_min, spec.sigma_max)

    def loss(model: nn.Module, batch: Batch) -> LossOutput:
        return dsm(
            wrapped(model),
            batch.x0,
            key=batch.key,
            step=batch.step,
            times=levels,
            sigma_data=spec.sigma_data,
        )

    return _trainer(network, loss, spec, data, settings, about)


def distillation_trainer(
    spec: Spec,
    data: Tensor | TrainingData,
    settings: TrainingSettings,
    teacher: Model,
    *,
    levels: int = 40,
    target_decay: float = 0.95,
    about: Mapping[str, object] | None = None,
    monitors: Sequence[Monitor] = (),
) -> Trainer:
    """Consistency distillation from the teacher's weights; the target's average has mu = 0.95.

    Raises:
        ValueError: the teacher is no score model, or of another shape or network; data of another
            shape.
    """
    _check_shape(spec, data)
    network = _begun(spec, settings, "teacher", teacher)
    target = EMA(network, target_decay)
    target.module.train()  # Dropout must fall on the target as it falls on the student.
    wrapped, aim = _wrapping(spec), spec.wrap(target.module)
    grid = karras_sigmas(levels, spec.sigma_min, spec.sigma_max, append_zero=False)
    pairs = UniformPairs(grid)

    def loss(model: nn.Module, batch: Batch) -> LossOutput:
        return cd(
            wrapped(model),
            batch.x0,
            key=batch.key,
            step=batch.step,
            teacher=teacher.function,
            target=aim,
            times=pairs,
            distance=pseudo_huber(),
        )

    course = {"levels": levels, "target_decay": target_decay, "teacher": _digest(teacher.network)}
    about = dict(about or {}) | {"course": course}
    return _trainer(network, loss, spec, data, settings, about, target=target, monitors=monitors)


def consistency_trainer(
    spec: Spec,
    data: Tensor | TrainingData,
    settings: TrainingSettings,
    *,
    s0: int = 2,
    s1: int = 64,
    about: Mapping[str, object] | None = None,
) -> Trainer:
    """Consistency training from scratch; see the head of this module for what matters and why.

    Raises:
        ValueError: data of another shape than the model's.
    """
    _check_shape(spec, data)
    network, wrapped = spec.build(settings.seed), _wrapping(spec)
    pairs = DoublingPairs(settings.steps, s0, s1, spec.sigma_min, spec.sigma_max)

    def loss(model: nn.Module, batch: Batch) -> LossOutput:
        return ict(wrapped(model), batch.x0, key=batch.key, step=batch.step, times=pairs)

    about = dict(about or {}) | {"course": {"s0": s0, "s1": s1}}
    return _trainer(network, loss, spec, data, settings, about)


def tuning_trainer(
    spec: Spec,
    data: Tensor | TrainingData,
    settings: TrainingSettings,
    init: Model,
    *,
    q: float = 4.0,
    stages: int = 4,
    about: Mapping[str, object] | None = None,
) -> Trainer:
    """Easy consistency tuning: from a score model's weights, which are not read again after that.

    The run has `stages` stages of the same length, in each of which the gap t - r of a pair is
    1/q of that in the one before. It is at most t: in the first stage r is 0 at more than half of
    the levels, where the loss is a denoiser's. The head of this module tells what matters.

    Raises:
        ValueError: init is no score model, or of another shape or network; data of another shape;
            q or stages out of range.
    """
    _check_shape(spec, data)
    network = _begun(spec, settings, "init", init)
    wrapped = _wrapping(spec)
    pairs = ECTPairs(q=q, stage_steps=-(-settings.steps // check.count("stages", stages)))

    def loss(model: nn.Module, batch: Batch) -> LossOutput:
        return ect(wrapped(model), batch.x0, key=batch.key, step=batch.step, times=pairs)

    course = {"q": q, "stages": stages, "init": _digest(init.network)}
    about = dict(about or {}) | {"course": course}
    return _trainer(network, loss, spec, data, settings, about)


def _begun(spec: Spec, settings: TrainingSettings, name: str, score: Model) -> nn.Module:
    """A network with the weights of a score model of the same kind of network."""
    if score.spec.kind != "score" or score.spec.shape != spec.shape:
        raise ValueError(
            f"{name} must be a score model of shape {list(spec.shape)}; "
            f"got a {score.spec.kind} model of shape {list(score.spec.shape)}"
        )
    mine, theirs = spec.about(), score.spec.about()
    for part in ("network", "options", "sigma_data"):
        if mine[part] != theirs[part]:
            raise ValueError(
                f"{name} must be of the same {part} as the model, {mine[part]}; got {theirs[part]}"
            )
    network = spec.build(settings.seed)
    network.load_state_dict(score.network.state_dict())
    return network


def _check_shape(spec: Spec, data: Tensor | TrainingData) -> None:
    shape = as_data(data).shape
    if tuple(shape) != tuple(spec.shape):
        raise ValueError(
            f"data must hold samples of the model's shape, {list(spec.shape)}; got {list(shape)}"
        )


def _wrapping(spec: Spec) -> Callable[[nn.Module], Function]:
    """What makes the model of a network, which may be in DistributedDataParallel; made once."""
    return lru_cache(maxsize=1)(spec.wrap)


def _digest(network: nn.Module) -> str:
    """A short hash of the weights: a run is resumed with the teacher that it began with."""
    digest = sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _trainer(
    network: nn.Module,
    loss: Callable[[nn.Module, Batch], LossOutput],
    spec: Spec,
    data: Tensor | TrainingData,
    settings: TrainingSettings,
    about: Mapping[str, object] | None,
    target: EMA[nn.Module] | None = None,
    monitors: Sequence[Monitor] = (),
) -> Trainer:
    # The average spans a tenth of a short run, and at most 1,000 steps of a long one.
    decay = min(0.999, 1.0 - 1.0 / max(2.0, 0.1 * settings.steps))
    averages = {"ema": EMA(network, decay, warmup=True)}
    if target is not None:
        averages["target"] = target
    return Trainer(
        network,
        loss,
        data,
        settings,
        averages=averages,
        about={"spec": spec.about()} | dict(about or {}),
        monitors=monitors,
    )


def trained(trainer: Trainer, spec: Spec) -> Model:
    """The averaged model of a trainer."""
    network = trainer.averages["ema"].module
    return Model(spec, network, spec.wrap(network), dict(trainer.about))


def default_settings(kind: str, steps: int | None, batch_size: int, seed: int) -> TrainingSettings:
    """Steps (score 2,000, cd 700, ct 1,500, ect 700) and learning rate that work for the digits."""
    defaults = {
        "score": (2000, 2e-3),
        "cd": (700, 5e-4),
        "ct": (1500, 1e-3),
        "ect": (700, 1e-3),
    }
    if kind not in defaults:
        raise ValueError(f"kind must be one of {KINDS}; got {kind!r}")
    usual, rate = defaults[kind]
    return TrainingSettings(
        steps=usual if steps is None else steps, batch_size=batch_size, lr=rate, seed=seed
    )
