"""Every option of a configuration is tried before data are read or anything is written."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from cmsolvers.runs.building import (
    ConfiguredLoss,
    averages_of,
    loss_of,
    optimizer_of,
    schedule_of,
    target_of,
    usual_target,
)
from cmsolvers.runs.building.loss_options import described_times
from cmsolvers.runs.building.recipe_losses import recipe_of
from cmsolvers.runs.config import AUTO, Config
from cmsolvers.runs.train.described_model import Sources
from cmsolvers.runs.train.stand_in import StandIn
from cmsolvers.training import TrainingSettings
from cmsolvers.training.named_options import (
    IMPORT,
    check_options,
    imported,
    option_names,
)
from cmsolvers.training.networks import enable_gradient_checkpointing
from cmsolvers.training.spec import Spec


@contextmanager
def of_section(name: str) -> Iterator[None]:
    """Errors in the block name a section of the configuration."""
    try:
        yield
    except (TypeError, ValueError, ImportError) as error:
        text = str(error)
        if text.startswith((name, "network must")) or isinstance(error, ModuleNotFoundError):
            raise
        raise type(error)(f"{name}: {text}") from error


def settings_of(config: Config) -> TrainingSettings:
    """The settings of the trainer."""
    with of_section("train"):
        return TrainingSettings(
            steps=config.train.steps,
            batch_size=config.train.batch_size,
            lr=config.optimizer.lr,
            clip=config.optimizer.clip,
            seed=config.run.seed,
            accumulate=config.train.accumulate,
            max_bad_steps=config.train.max_bad_steps,
            precision=config.train.precision,
        )


def optimizer_table(config: Config) -> dict[str, object]:
    """The optimiser as `optimizer_of` takes it."""
    return {**config.optimizer.options, "name": config.optimizer.name}


def schedule_table(config: Config) -> dict[str, object]:
    """The schedule as `schedule_of` takes it; one of the user's own gets what it has a name for."""
    keys = config.schedule
    table = {**keys.options, "name": keys.name}
    own = keys.name.startswith(IMPORT)
    if not own or "warmup" in option_names(imported("schedule", keys.name)):
        table.setdefault("warmup", keys.warmup)
    return table


def averages_list(config: Config) -> list[dict[str, object]] | None:
    """The averages as `averages_of` takes them."""
    return [{**table, "name": name} for name, table in config.averages.items()] or None


def target_value(config: Config) -> object:
    """The target as `target_of` takes it."""
    return usual_target(config.loss.name) if config.loss.target == AUTO else config.loss.target


def times_value(config: Config) -> object:
    """The distribution of levels as `loss_of` takes it: without a name it is the recipe's own.

    Raises:
        ValueError: the recipe has none of its own, or it is that of a preset.
    """
    keys = config.loss
    if not isinstance(keys.times, Mapping) or "name" in keys.times:
        return keys.times
    own = inspect.signature(recipe_of(keys.name)).parameters["times"].default
    if own is inspect.Parameter.empty or own is None or keys.preset is not None:
        raise ValueError(
            "loss.times must have a name: there is no distribution of the recipe's own to change"
        )
    return {**described_times(own), **keys.times}


def configured_loss(config: Config, spec: Spec, sources: Sources) -> ConfiguredLoss:
    """The loss, without its target.

    Raises:
        ImportError, TypeError, ValueError: as `loss_of`.
    """
    keys = config.loss
    with of_section("loss"):
        return loss_of(
            keys.name,
            spec,
            config.train.steps,
            keys.options,
            times=times_value(config),
            teacher=sources.teacher,
            teacher_guidance=config.teacher.guidance,
            label_dropout=keys.label_dropout,
            bad_rows=keys.bad_rows,
            preset=keys.preset,
        )


def rehearse(config: Config, spec: Spec, sources: Sources) -> None:
    """Try everything that a configuration hands on, on stand-ins that take no memory.

    Args:
        config: the configuration.
        spec: of the model, with the data's shape; the number of classes may be another.
        sources: teacher and start.

    Raises:
        ImportError, TypeError, ValueError: an unknown name or option, or one that does not fit.
    """
    settings_of(config)
    total, stand_in = config.train.steps, StandIn()
    with of_section("optimizer"):
        optimizer_of(optimizer_table(config), stand_in, config.optimizer.lr)
    with of_section("schedule"):
        schedule_of(schedule_table(config), total)(0)
    with of_section("averages"):
        averages_of(averages_list(config), stand_in, total)
    loss = configured_loss(config, spec, sources)
    with of_section("loss"):
        target_of(target_value(config), stand_in, spec, total, loss.times)
    _rehearse_network(config, spec)


def _rehearse_network(config: Config, spec: Spec) -> None:
    if spec.network.startswith(IMPORT):
        made = imported("network", spec.network)  # whether it can be built without memory is open
        kinds = [p.kind for p in inspect.signature(made).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            check_options(f"network {spec.network}", spec.options or {}, option_names(made))
        return
    with of_section("network"):
        with torch.device("meta"):
            network = spec.build(config.run.seed)
        if config.network.gradient_checkpointing:
            enable_gradient_checkpointing(network)
        spec.wrap(network)
