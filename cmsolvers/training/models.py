"""Models as checkpoints hold them: read again, and handed to other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from cmsolvers.training.checkpoint import read_checkpoint
from cmsolvers.training.diffusers_folders import (
    export_network,
    is_diffusers_folder,
    read_folder,
)
from cmsolvers.training.named_options import nearest
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


def load_model(path: str | Path, average: str | None = None, *, kind: str | None = None) -> Model:
    """The model of a checkpoint, or of a folder of diffusers, in evaluation mode.

    Args:
        path: a checkpoint of this library, a pipeline or a model of diffusers.
        average: name of the average whose weights to take, "network" for the network itself; None
            is "ema" where there is one, else the network.
        kind: of a folder of diffusers without a scheduler: what stands around the network.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: no checkpoint of a model, or no such average.
    """
    if is_diffusers_folder(path):
        if average not in (None, NETWORK):
            raise ValueError(f"average must be left out: {path} is of diffusers, with one network")
        return read_folder(path, kind=kind)
    groups, about = read_checkpoint(path)
    if "spec" not in about or NETWORK not in groups:
        raise ValueError(f"path must be a checkpoint of `cmsolvers train` or `demo`; got {path}")
    averages = [name.removeprefix(AVERAGE) for name in groups if name.startswith(AVERAGE)]
    if average is None:
        average = "ema" if "ema" in averages else NETWORK
    if average != NETWORK and average not in averages:
        raise ValueError(
            f"average must be one of {', '.join([*averages, NETWORK])} in {path}; "
            f"got {average!r}{nearest(average, averages)}"
        )
    try:
        spec = Spec.read(about["spec"])
        network = spec.build(0)
        load_network(network, groups[NETWORK if average == NETWORK else AVERAGE + average])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"path must be an undamaged checkpoint; {path}: {error}") from error
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
