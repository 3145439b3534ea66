"""Who follows a training: tables, pictures, TensorBoard, samples and snapshots."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.runs.building.loss_options import LABELS
from cmsolvers.runs.config import Config
from cmsolvers.runs.sample import Plan, plan_of
from cmsolvers.runs.train.stand_in import StandIn
from cmsolvers.training.data import Scale
from cmsolvers.training.monitors import (
    CSVLog,
    LevelBins,
    LossPicture,
    SampleGrid,
    Snapshots,
    TensorBoardLog,
)
from cmsolvers.training.reports import Monitor
from cmsolvers.training.spec import Model, Spec

NETWORK = "network"
"""What stands for the network itself among averages."""

COLUMNS = 8
"""Samples in a row of a grid; with labels each row has a class of its own."""


def monitors_of(config: Config, out: Path, spec: Spec, scale: Scale | None) -> list[Monitor]:
    """The monitors of a configuration: in all processes the same, told in the first.

    Args:
        config: the configuration.
        out: the run's folder.
        spec: of the model.
        scale: of the data, for pictures of samples.

    Raises:
        TypeError, ValueError: numbers or names that do not fit.
    """
    keys = config.logging
    found: list[Monitor] = []
    log, levels = out / "log.csv", out / "levels.csv"
    if keys.csv:
        found.append(CSVLog(log, keys.every))
    if keys.levels_every:
        found.append(LevelBins(levels, keys.levels_every))
    if keys.csv and keys.picture_every:
        shown = levels if keys.levels_every else None
        found.append(
            LossPicture(out / "losses.png", log, shown, keys.picture_every, config.run.out)
        )
    if keys.tensorboard:
        found.append(TensorBoardLog(out / "tensorboard", keys.every, keys.levels_every))
    if config.sampling.every:
        found.append(sample_grid(config, out, spec, scale))
    if config.checkpoints.snapshots:
        found.append(Snapshots(out, config.checkpoints.snapshots))
    return found


def sample_grid(config: Config, out: Path, spec: Spec, scale: Scale | None) -> SampleGrid:
    """The monitor that draws samples."""
    keys = config.sampling
    average = sampled_average(config)
    return SampleGrid(
        out / "samples",
        Drawing(config, spec),
        spec.shape,
        keys.every,
        average=None if average == NETWORK else average,
        count=keys.count,
        seed=config.run.seed,
        columns=COLUMNS,
        scale=scale,
    )


def sampled_average(config: Config) -> str:
    """The average that is sampled.

    Raises:
        ValueError: no such one.
    """
    known = list(config.averages) or ["ema"]
    name = config.sampling.average
    if name is None:
        return known[0]
    if name not in (*known, NETWORK):
        raise ValueError(
            f"sampling.average must be one of {', '.join([*known, NETWORK])}; got {name!r}"
        )
    return name


class Drawing:
    """Draws samples of a model, as `cmsolvers sample` does: sample(network, z) -> x.

    Args:
        config: its section `sampling` says how.
        spec: of the model.

    Raises:
        TypeError, ValueError: a sampler that does not fit the model, or options that it lacks.
    """

    def __init__(self, config: Config, spec: Spec) -> None:
        self.keys, self.spec, self.seed = config.sampling, spec, config.run.seed
        self.plan(StandIn())

    def plan(self, network: nn.Module) -> tuple[Model, Plan]:
        """The model around a network, and what the sampler does with it."""
        keys = self.keys
        model = Model(self.spec, network, self.spec.wrap(network), {})
        return model, plan_of(
            model,
            keys.sampler,
            steps=keys.steps,
            levels=keys.levels,
            options=keys.options,
        )

    def __call__(self, network: nn.Module, z: Tensor) -> Tensor:
        """Unit normals [count, *shape] -> samples of that shape."""
        model, plan = self.plan(network)
        told: dict[str, Tensor] = {}
        if self.spec.classes is not None:
            rows = torch.arange(len(z), device=z.device) // COLUMNS
            told[LABELS] = rows % self.spec.classes
        key = noise.key(self.seed, len(z), device=z.device)
        return plan.draw(model.function, z, key, told)[0]


def rehearse_following(config: Config, spec: Spec) -> None:
    """Try what the monitors are made of.

    Raises:
        TypeError, ValueError: numbers or names that do not fit.
    """
    if config.sampling.every:
        sampled_average(config)
        try:
            sample_grid(config, Path(config.run.out), spec, None)
        except (TypeError, ValueError) as error:
            raise type(error)(f"sampling: {error}") from error
    profiles = [name for name, table in config.averages.items() if "sigma_rel" in table]
    if config.checkpoints.snapshots and not profiles:
        raise ValueError(
            "checkpoints.snapshots must be 0 without averages that have sigma_rel; two are usual, "
            "averages.short.sigma_rel=0.05 averages.long.sigma_rel=0.1"
        )
