"""What a run's folder holds besides checkpoints, and whether a run may go on in it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from cmsolvers.ops import build_info
from cmsolvers.runs.config import Change, Config, changes, config_text, read_config
from cmsolvers.training.checkpoints import CheckpointError, RunFolder, replace_file

CONFIG, VERSIONS = "config.toml", "versions.json"
PACKAGES = ("accelerate", "datasets", "diffusers", "numpy", "pillow", "safetensors", "scipy")


@dataclass(frozen=True)
class Plan:
    """What will be done in a folder.

    Attributes:
        begun: what the newest checkpoint says of the run that goes on; None: a run begins.
        step: its step.
        changes: keys with other values than before.
        aside: where the run that is there is moved.
    """

    begun: Mapping[str, object] | None = None
    step: int = 0
    changes: Sequence[Change] = ()
    aside: Path | None = None


def plan_of(config: Config, folder: RunFolder, *, overwrite: bool = False) -> Plan:
    """What will be done in the folder of a configuration; nothing is changed.

    Raises:
        OSError: it is a file, or cannot be read.
        ValueError: it holds a run with another configuration, or what is none of a run's.
    """
    out = folder.path
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"run.out must be a folder; {out} is a file")
    there = folder.checkpoints()
    mine = (out / VERSIONS).is_file() and (out / CONFIG).is_file()
    if not mine and ((out / CONFIG).exists() or (out / VERSIONS).exists()):
        raise FileExistsError(
            f"run.out must be a folder of its own; {out} holds a configuration that is no run's"
        )
    if overwrite:
        return Plan(aside=_aside(out) if there or mine else None)
    if there and not mine:
        raise FileExistsError(
            f"run.out must be empty or a run of `cmsolvers train`; {out} holds other checkpoints "
            "(--overwrite moves them aside)"
        )
    try:
        found = folder.newest(only=[])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --overwrite moves the folder aside") from error
    if found is None or (found.step == 0 and len(there) == 1):
        if config.run.resume == "must":
            raise FileNotFoundError(f"run.resume is 'must', and there is no run in {out}")
        return Plan()
    if config.run.resume == "never":
        raise FileExistsError(
            f"run.resume is 'never', and {out} holds a run at step {found.step}: choose another "
            "run.out, or --overwrite, which moves it aside"
        )
    return Plan(found.about, found.step, _allowed(config, out, found.step))


def _allowed(config: Config, out: Path, step: int) -> list[Change]:
    """What has changed, if a run may go on with it."""
    try:
        before = read_config(out / CONFIG)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the configuration of the run cannot be read, so it cannot go on: {error}"
        ) from error
    found = changes(before, config)
    refused = [str(change) for change in found if not change.allowed]
    if refused:
        raise ValueError(
            f"{out} holds a run at step {step} with another configuration: {'; '.join(refused)}. "
            "Choose another run.out, or --overwrite, which moves it aside"
        )
    return found


def _aside(out: Path) -> Path:
    here = Path.cwd()
    if out.resolve() == here or out.resolve() in here.parents:
        raise ValueError(
            f"--overwrite must not move the folder in which the command runs; run.out is {out}"
        )
    number = 1
    while (found := out.with_name(f"{out.name}.old-{number}")).exists():
        number += 1
    return found


def clear_start(folder: RunFolder) -> None:
    """Remove a checkpoint of step 0 alone: what failed in its first step, and can be made again."""
    there = folder.checkpoints()
    if [place.name for place in there] == ["step-00000000"]:
        shutil.rmtree(there[0])


def write_records(
    config: Config,
    out: Path,
    plan: Plan,
    chosen: Mapping[str, object],
    about: Mapping[str, object],
    arguments: Sequence[str],
) -> None:
    """Write config.toml, and a further entry of versions.json.

    Args:
        config: of the run.
        out: its folder.
        plan: what is done in it.
        chosen: what stands for "auto" and for keys that are unset.
        about: further facts of this start.
        arguments: of the command.
    """
    head = (
        "# The configuration of the run in this folder, every key that is set; what was chosen for "
        "'auto'\n# and for keys that are not set stands in comments.\n\n"
    )
    entry = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": plan.step,
        "arguments": list(arguments),
        "changes": [str(change) for change in plan.changes],
        **versions(),
        **about,
    }
    text = json.dumps([*_entries(out / VERSIONS), entry], indent=2)
    # The configuration first: with versions.json, which comes second, the folder is a run's.
    replace_file(out / CONFIG, head + config_text(config, chosen))
    replace_file(out / VERSIONS, text + "\n")


def _entries(path: Path) -> list[object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def versions() -> dict[str, object]:
    """What runs here, as far as numbers may depend on it."""
    info = build_info()
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cmsolvers": info["version"],
        "csrc_hash": info.get("csrc_hash"),
        "instruction_set": info["instruction_set"],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": packages,
    }


def move_aside(out: Path, aside: Path) -> None:
    """Move a folder that is locked here; the lock's file goes."""
    os.rename(out, aside)
    (aside / "lock").unlink(missing_ok=True)
