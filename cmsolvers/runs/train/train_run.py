"""A training from its configuration to its last checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cmsolvers.runs.config import Config, config_text
from cmsolvers.runs.train import run_records as records
from cmsolvers.runs.train.assembling import trainer_of, try_loss
from cmsolvers.runs.train.data_outline import opened_data, outlined_classes, outlined_shape
from cmsolvers.runs.train.described_model import Sources, sources_of, spec_of
from cmsolvers.runs.train.dry_run import chosen_of, summary
from cmsolvers.runs.train.following import monitors_of, rehearse_following
from cmsolvers.runs.train.placing import (
    accelerator_of,
    check_sharding,
    device_of,
    name_of,
    process,
    processes,
)
from cmsolvers.runs.train.rehearsal import rehearse
from cmsolvers.training import RunFolder, Trainer
from cmsolvers.training.data import TrainingData, describe
from cmsolvers.training.named_options import IMPORT
from cmsolvers.training.spec import Spec

if TYPE_CHECKING:
    from accelerate import Accelerator

Tell = Callable[[str], object]
"""Is handed lines for the user."""

STAND_IN = 10
"""Classes of a rehearsal, where the data must be read to know how many there are."""


class AnotherProcessFailed(SystemExit):
    """The first process tells what went wrong; this one ends with the same status."""


def train(
    config: Config,
    *,
    overwrite: bool = False,
    tell: Tell = print,
    arguments: Sequence[str] = (),
) -> Trainer:
    """Train what a configuration describes, or go on with the run in its folder.

    Everything is checked before data are read, and again with the data before the folder changes.
    Under torchrun all processes call this with the same configuration; the first one writes.

    Args:
        config: the configuration.
        overwrite: begin anew; the run that is there is moved to OUT.old-N.
        tell: is handed lines for the user, in the first process.
        arguments: of the command, for versions.json.

    Returns:
        The trainer at the last step.

    Raises:
        OSError, TypeError, ValueError, ImportError: input that does not fit; nothing was changed.
        KeyboardInterrupt, SystemExit: a signal, after a checkpoint was written; see `Trainer.run`.
        FloatingPointError: as `Trainer.run`.
    """
    folder = RunFolder(config.run.out, keep=config.checkpoints.keep)
    device = device_of(config.run.device)
    if process() > 0:
        tell = _nothing
    with ExitStack() as stack:
        accelerator = accelerator_of(config, device)
        stack.callback(_leave_processes)
        held = stack.enter_context(ExitStack())
        plan = _planned(config, folder, overwrite, held, accelerator)
        with _all_or_none(accelerator):
            sources = sources_of(config, begun=plan.begun is not None)
            _rehearse(config, plan, sources)
            data = opened_data(config.data)
            spec = _spec(config, plan, sources, data)
        trainer = trainer_of(
            config,
            spec,
            data,
            sources,
            device,
            accelerator=accelerator,
            monitors=monitors_of(config, folder.path, spec, data.scale),
            begun=plan.begun,
        )
        try_loss(trainer, data)
        if plan.begun is not None:
            trainer.resume(folder)  # which may refuse: the records must still be the run's then
        if process() == 0:
            _write(config, folder, plan, trainer, spec, data, held, arguments)
        _together(accelerator)
        for line in summary(config, trainer, spec, data, plan):
            tell(line)
        _run(config, folder, trainer, tell)
    return trainer


def dry_run(config: Config, *, overwrite: bool = False) -> str:
    """What `train` would do, as TOML: the configuration, and comments on what would be built.

    Raises:
        OSError, TypeError, ValueError, ImportError: as `train`. Nothing is written either way.
    """
    device = device_of(config.run.device)
    check_sharding(config, device)
    plan = records.plan_of(config, RunFolder(config.run.out), overwrite=overwrite)
    sources = sources_of(config, begun=plan.begun is not None)
    _rehearse(config, plan, sources)
    data = opened_data(config.data)
    spec = _spec(config, plan, sources, data)
    trainer = trainer_of(config, spec, data, sources, device, begun=plan.begun)
    try_loss(trainer, data)
    lines = [f"# {line}" for line in summary(config, trainer, spec, data, plan)]
    return config_text(config, chosen_of(config, spec, device)) + "\n" + "\n".join(lines)


# --- what is trained ---------------------------------------------------------------------------


def _rehearse(config: Config, plan: records.Plan, sources: Sources) -> None:
    """Try everything that can be tried before data are read."""
    spec = _outlined(config, plan, sources)
    rehearse(config, spec, sources)
    rehearse_following(config, spec)


def _outlined(config: Config, plan: records.Plan, sources: Sources) -> Spec:
    """The spec as far as it is known before data are read."""
    shape = outlined_shape(config.data)
    if plan.begun is not None:
        return _begun_spec(config, plan)
    classes = outlined_classes(config.data)
    unknown = classes is None and not config.data.source.startswith("toy:")
    return spec_of(config, shape, STAND_IN if unknown else classes, sources)


def _spec(config: Config, plan: records.Plan, sources: Sources, data: TrainingData) -> Spec:
    """The spec of the model; that of its checkpoint where the run goes on."""
    if plan.begun is not None:
        return _begun_spec(config, plan)
    return spec_of(config, tuple(data.shape), data.classes, sources)


def _begun_spec(config: Config, plan: records.Plan) -> Spec:
    assert plan.begun is not None
    spec = Spec.read(plan.begun.get("spec"))
    known = (config.network.name, *config.init.trusted, *config.teacher.trusted)
    if spec.network.startswith(IMPORT) and spec.network not in known:
        raise ValueError(
            f"the checkpoint in {config.run.out} has the network {spec.network!r}, which the "
            "configuration does not name: it is not run"
        )
    return spec


# --- the folder and the processes --------------------------------------------------------------


def _planned(
    config: Config,
    folder: RunFolder,
    overwrite: bool,
    held: ExitStack,
    accelerator: Accelerator | None,
) -> records.Plan:
    """What is done in the folder, of which the first process then holds the lock."""
    plan = records.Plan()
    with _all_or_none(accelerator):
        if process() == 0:
            # Before the lock, which makes the folder: a refusal leaves nothing behind.
            records.plan_of(config, folder, overwrite=overwrite)
            if not folder.path.exists():
                held.callback(_remove_empty, folder.path)
            held.enter_context(folder.locked())
            plan = records.plan_of(config, folder, overwrite=overwrite)
    goes_on = _told(float(plan.begun is not None), accelerator)
    if process() > 0 and goes_on:
        found = folder.newest(only=[])
        if found is None:
            raise OSError(f"all processes must see the same folder; {folder.path} is empty here")
        return records.Plan(found.about, found.step)
    return plan


@contextmanager
def _all_or_none(accelerator: Accelerator | None) -> Iterator[None]:
    """A block of each process, none of which goes on where it failed in one of them.

    Raises:
        AnotherProcessFailed: it did in the first process, which tells why, or in others alone.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if accelerator is not None and processes() > 1:
        first = _told(float(failure is not None), accelerator)
        count = torch.tensor([float(failure is not None)], device=accelerator.device)
        torch.distributed.all_reduce(count)
        if (first and process() > 0) or (float(count) and failure is None):
            raise AnotherProcessFailed(2)
    if failure is not None:
        raise failure


def _remove_empty(path: Path) -> None:
    """Leave nothing behind of a run that did not begin."""
    with suppress(OSError):
        path.rmdir()


def _told(number: float, accelerator: Accelerator | None) -> float:
    """A number of the first process, in all of them."""
    if accelerator is None or processes() == 1:
        return number
    value = torch.tensor([number], device=accelerator.device)
    torch.distributed.broadcast(value, 0)
    return float(value)


def _together(accelerator: Accelerator | None) -> None:
    """Wait until the first process has written what the others will read."""
    _told(0.0, accelerator)


def _leave_processes() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _nothing(line: str) -> None:
    """Where another process tells it."""


def _write(
    config: Config,
    folder: RunFolder,
    plan: records.Plan,
    trainer: Trainer,
    spec: Spec,
    data: TrainingData,
    held: ExitStack,
    arguments: Sequence[str],
) -> None:
    """Write the records of a run, after what was there is out of the way."""
    if plan.aside is not None:
        records.move_aside(folder.path, plan.aside)
        held.close()
        held.enter_context(folder.locked())
    elif plan.begun is None:
        records.clear_start(folder)
    device = trainer.placement.device
    about = {
        "device": name_of(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processes": processes(),
        "working_folder": os.getcwd(),
        "data": describe(data),
    }
    records.write_records(
        config, folder.path, plan, chosen_of(config, spec, device), about, arguments
    )


def _run(config: Config, folder: RunFolder, trainer: Trainer, tell: Tell) -> None:
    """The training itself."""
    total = trainer.settings.steps
    if trainer.step >= total:
        tell(f"the run is finished, {trainer.step:,} steps; a larger train.steps goes on with it")
        return
    try:
        trainer.run(
            folder=folder,
            every=config.checkpoints.every,
            progress=config.logging.progress,
            description=Path(config.run.out).name or "training",
        )
    except (KeyboardInterrupt, SystemExit):
        tell(f"at step {trainer.step:,}; {_kept(folder)}the same command goes on")
        raise
    skipped = f", {trainer.skipped:,} skipped" if trainer.skipped else ""
    tell(
        f"{trainer.step:,} steps{skipped}; loss {_last(trainer.history):.4g}; {_kept(folder)[:-2]}"
    )


def _kept(folder: RunFolder) -> str:
    there = folder.checkpoints()
    return f"checkpoint {there[-1]}; " if there else "no checkpoint could be written; "


def _last(history: Sequence[float]) -> float:
    """The mean loss of the last twentieth of a run, at least one step and at most 1,000."""
    count = min(1000, max(1, len(history) // 20))
    return sum(history[-count:]) / count
