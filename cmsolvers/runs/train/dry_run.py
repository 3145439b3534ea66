"""What a configuration would build, in a few lines."""

from __future__ import annotations

import torch

from cmsolvers.runs.config import AUTO, Config
from cmsolvers.runs.train.placing import name_of, processes
from cmsolvers.runs.train.rehearsal import target_value
from cmsolvers.runs.train.run_records import Plan
from cmsolvers.training import Trainer
from cmsolvers.training.checkpoints import stored_bytes
from cmsolvers.training.data import TrainingData
from cmsolvers.training.spec import Spec


def chosen_of(config: Config, spec: Spec, device: torch.device) -> dict[str, object]:
    """What stands for keys that are "auto" or unset: key with section -> value."""
    found: dict[str, object] = {}
    if config.run.device == AUTO:
        found["run.device"] = name_of(device)
    if config.model.kind == AUTO:
        found["model.kind"] = spec.kind
    for name in ("sigma_min", "sigma_max", "sigma_data"):
        if getattr(config.model, name) is None:
            found[f"model.{name}"] = getattr(spec, name)
    if config.network.name == AUTO:
        found["network.name"] = spec.network
        options = {key: value for key, value in (spec.options or {}).items() if value is not None}
        if options != dict(config.network.options):  # TOML has no null, a config of diffusers has
            found["network.options"] = options
    if config.loss.target == AUTO:
        found["loss.target"] = target_value(config)
    return found


def parameters_of(trainer: Trainer) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)


def checkpoint_bytes(trainer: Trainer) -> int:
    """About how large a checkpoint gets: network, averages, and an optimiser with two moments."""
    network = dict(trainer.network.state_dict())
    groups = {"network": network, "optimizer.1": network, "optimizer.2": network}
    groups |= {f"average.{name}": ema.state_dict() for name, ema in trainer.averages.items()}
    return stored_bytes(groups)


def summary(
    config: Config, trainer: Trainer, spec: Spec, data: TrainingData, plan: Plan
) -> list[str]:
    """Lines that say what is trained on what, and where."""
    batch, steps = config.train.batch_size, config.train.steps
    per_pass = len(data) // batch
    classes = "" if data.classes is None else f", {data.classes} classes"
    told = " (told to the network)" if spec.classes is not None else ""
    device, count = name_of(trainer.placement.device), processes()
    several = f", {count} processes" if count > 1 else ""
    lines = [
        f"data: {len(data):,} samples {list(data.shape)}{classes}{told}, fingerprint "
        f"{data.fingerprint}",
        f"network: {spec.network}, {parameters_of(trainer):,} parameters, in a model "
        f"{spec.kind!r} on {device}{several}",
        f"loss: {config.loss.name}; averages: {', '.join(sorted(trainer.averages))}",
        f"training: {steps:,} steps of {batch:,}, {per_pass:,} batches per pass over the data, "
        f"{steps / max(1, per_pass):.4g} passes",
        f"a checkpoint: about {_size(checkpoint_bytes(trainer))}, {config.checkpoints.keep} are "
        "kept",
        f"folder: {config.run.out}, {doing(plan)}",
    ]
    return [*lines, *(f"note: {note}" for note in getattr(data, "notes", ()))]


def doing(plan: Plan) -> str:
    """What is done with the folder, in words."""
    if plan.begun is None:
        return "a new run" + (f"; what is there goes to {plan.aside}" if plan.aside else "")
    changed = "; ".join(str(change) for change in plan.changes)
    return f"its run goes on from step {plan.step:,}" + (f" ({changed})" if changed else "")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
