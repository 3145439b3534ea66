"""Models as checkpoints hold them: read again, and handed to other libraries."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from cmsolvers.training.checkpoints import (
    CheckpointError,
    RunFolder,
    group_names,
    read_checkpoint,
)
from cmsolvers.training.diffusers_folders import (
    export_network,
    is_diffusers_folder,
    read_folder,
)
from cmsolvers.training.named_options import IMPORT, nearest
from cmsolvers.training.spec import CONSISTENCY_KINDS, KINDS, Model, Spec

__all__ = [
    "CONSISTENCY_KINDS",
    "KINDS",
    "Model",
    "Spec",
    "export_network",
    "load_model",
    "load_network",
]

AVERAGE = "average."
"""How the names of groups begin that hold averages."""

NETWORK = "network"
"""The group of the network itself, and its name beside those of averages."""


def load_model(
    path: str | Path,
    average: str | None = None,
    *,
    kind: str | None = None,
    trusted: Collection[str] = (),
) -> Model:
    """The model of a checkpoint, or of a folder of diffusers: in evaluation mode, no gradients.

    Args:
        path: a checkpoint of this library, the folder of a run (its newest valid checkpoint), a
            pipeline or a model of diffusers.
        average: name of the average whose weights to take, "network" for the network itself; None
            is "ema" where there is one, else the network.
        kind: of a model of diffusers without a scheduler: what stands around the network.
        trusted: names "import:package.module:Class" of networks that a checkpoint may have. Any
            other one is refused, as reading somebody's checkpoint must not run code that it names.

    Raises:
        OSError: no such folder, or one that cannot be read.
        ValueError: no checkpoint of a model, a damaged one, or no such average.

    Warns:
        UserWarning: newer checkpoints of a run are damaged.
    """
    place = Path(path)
    if is_diffusers_folder(place):
        if average not in (None, NETWORK):
            raise ValueError(f"average must be left out: {path} is of diffusers, with one network")
        return read_folder(place, kind=kind)
    if kind is not None:
        raise ValueError(f"kind must be left out: {path} is no folder of diffusers")
    if not (place / "checkpoints").is_dir():
        return _read(place, average, trusted)
    damaged: list[str] = []
    for step in reversed(RunFolder(place).checkpoints()):
        try:
            found = _read(step, average, trusted)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{step} is read; " + "; ".join(damaged), stacklevel=2)
        return found
    why = "; ".join(damaged) or "there is none"
    raise CheckpointError(f"{place / 'checkpoints'} must hold an undamaged checkpoint; {why}")


def _read(place: Path, average: str | None, trusted: Collection[str]) -> Model:
    """The model of one checkpoint."""
    names = group_names(place)
    averages = [name.removeprefix(AVERAGE) for name in names if name.startswith(AVERAGE)]
    if average is None:
        average = "ema" if "ema" in averages else NETWORK
    if average != NETWORK and average not in averages:
        raise ValueError(
            f"average must be one of {', '.join([*averages, NETWORK])} in {place}; "
            f"got {average!r}{nearest(average, averages)}"
        )
    group = NETWORK if average == NETWORK else AVERAGE + average
    if group not in names:
        raise CheckpointError(f"path must be a checkpoint of a model; {place} has no {group}")
    groups, about = read_checkpoint(place, only=[group])
    if "spec" not in about:
        raise CheckpointError(
            f"path must be a checkpoint of `cmsolvers train` or `demo`; {place} does not say what "
            "its network is"
        )
    try:
        spec = Spec.read(about["spec"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"path must be a checkpoint of a model; {place}: {error}") from error
    if spec.network.startswith(IMPORT) and spec.network not in trusted:
        raise ValueError(
            f"{place}: its network is {spec.network!r}, which is imported only where it is named "
            f"as trusted; got {sorted(trusted)}"
        )
    try:
        network = spec.build(0)
        load_network(network, groups[group])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"path must be a checkpoint of a model; {place}: {error}") from error
    network.requires_grad_(False).eval()
    return Model(spec, network, spec.wrap(network), about)


def load_network(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the weights of a checkpoint's group, of it or of the model around it.

    Raises:
        RuntimeError: weights of another network.
    """
    weights = {name: value for name, value in state.items() if name != "ema_steps"}
    if weights and all(name.startswith("net.") for name in weights):
        weights = {name.removeprefix("net."): value for name, value in weights.items()}
    network.load_state_dict(weights)
