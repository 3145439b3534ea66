"""The trainer of a configuration: network, loss, averages and optimiser, on their device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from cmsolvers.runs.building import (
    averages_of,
    begin_with,
    digest,
    optimizer_of,
    schedule_of,
    target_of,
)
from cmsolvers.runs.building.targets import TARGET
from cmsolvers.runs.config import Config
from cmsolvers.runs.train import rehearsal as parts
from cmsolvers.runs.train.described_model import Sources, check_scales
from cmsolvers.training import Trainer
from cmsolvers.training.data import TrainingData, batch_at
from cmsolvers.training.networks import enable_gradient_checkpointing
from cmsolvers.training.reports import Monitor
from cmsolvers.training.spec import Spec

if TYPE_CHECKING:
    from accelerate import Accelerator

FEW = 4
"""Samples on which a loss is tried."""


def trainer_of(
    config: Config,
    spec: Spec,
    data: TrainingData,
    sources: Sources,
    device: torch.device,
    *,
    accelerator: Accelerator | None = None,
    monitors: Sequence[Monitor] = (),
    begun: Mapping[str, object] | None = None,
) -> Trainer:
    """The trainer of a configuration, at step 0.

    Args:
        config: the configuration.
        spec: of the model.
        data: of the spec's shape.
        sources: teacher and start.
        device: where it runs.
        accelerator: of several processes.
        monitors: who follows it.
        begun: what the checkpoint says from which the run goes on.

    Raises:
        ImportError, TypeError, ValueError: parts that do not fit together.
    """
    if begun is not None and begun.get("fingerprint") != data.fingerprint:
        raise ValueError(
            "data must be those that the run began with, whose fingerprint is "
            f"{begun.get('fingerprint')}; these have {data.fingerprint}"
        )
    check_scales(data.scale, sources)
    if tuple(data.shape) != tuple(spec.shape):
        raise ValueError(
            f"data must hold samples of the model's shape, {list(spec.shape)}; "
            f"got {list(data.shape)}"
        )
    settings, total = parts.settings_of(config), config.train.steps
    with parts.of_section("network"):
        network = spec.build(config.run.seed)
    if sources.init is not None:
        begin_with(network, spec, sources.init)
    if config.network.gradient_checkpointing:
        enable_gradient_checkpointing(network)
    network.to(device)
    if sources.teacher is not None:
        sources.teacher.function.to(device)
    loss = parts.configured_loss(config, spec, sources)
    target = target_of(parts.target_value(config), network, spec, total, loss.times)
    averages = dict(averages_of(parts.averages_list(config), network, total))
    decays = {}
    if target is not None:
        loss.target, averages[TARGET] = target.function, target.average
        if target.decay is not None:
            decays[TARGET] = target.decay
    return Trainer(
        network,
        loss,
        data,
        settings,
        optimizer=optimizer_of(parts.optimizer_table(config), network, config.optimizer.lr),
        schedule=schedule_of(parts.schedule_table(config), total),
        averages=averages,
        decays=decays,
        about=described(config, spec, data, sources, begun),
        monitors=monitors,
        accelerator=accelerator,
        workers=config.data.workers,
    )


def try_loss(trainer: Trainer, data: TrainingData) -> None:
    """Evaluate the loss on the first few samples, so that what does not fit is known early.

    It changes nothing but what a network counts in buffers of its own, which a run that goes on
    reads from its checkpoint afterwards. All processes must call.

    Raises:
        TypeError, ValueError: model, teacher, levels and data that do not fit together.
    """
    settings, place = trainer.settings, trainer.placement
    batch = batch_at(
        data,
        0,
        settings.steps,
        settings.batch_size,
        settings.seed,
        rank=place.rank,
        world=place.world,
        device=place.device,
    )
    few = batch.part(0, min(FEW, len(batch.index)))
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
    devices = [place.device] if place.device.type == "cuda" else []
    with (
        parts.of_section("loss"),
        torch.random.fork_rng(devices),
        torch.autocast(place.device.type, narrow, enabled=narrow is not None),
    ):
        trainer.loss(trainer.network, few)


def described(
    config: Config,
    spec: Spec,
    data: TrainingData,
    sources: Sources,
    begun: Mapping[str, object] | None,
) -> dict[str, object]:
    """What checkpoints say of a run: enough to build the model again and to show its samples.

    Args:
        config: the configuration.
        spec: of the model.
        data: of the run; where they are is not said, so that they may move.
        sources: teacher and start, which are told by a hash of their weights.
        begun: the same of the checkpoint from which the run goes on, for its start.
    """
    found: dict[str, object] = {"spec": spec.about(), "loss": config.loss.name}
    if data.scale is not None:
        found["scale"] = data.scale.about()
    if names := getattr(data, "class_names", ()):
        found["class_names"] = list(names)
    if sources.teacher is not None:
        found["teacher"] = digest(sources.teacher.network)
    if begun is not None:
        if "init" in begun:
            found["init"] = begun["init"]
    elif sources.init is not None:
        found["init"] = digest(sources.init.network)
    return found
