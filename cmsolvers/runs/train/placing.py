"""Devices and processes of a training by command."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from cmsolvers.runs.config import AUTO, Config

if TYPE_CHECKING:
    from accelerate import Accelerator

UNIT = 1_000_000
"""Parameters of a part of the network that is gathered at once where it is sharded."""


def process() -> int:
    """The number of this process among those that torchrun started."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_of(name: str) -> torch.device:
    """The device that a configuration asks for; of several processes each has its own.

    Raises:
        ValueError: no such device here.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == AUTO:
        name = "cuda" if there else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"run.device must be 'auto', 'cpu', 'cuda' or 'cuda:N'; got {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    if not there:
        raise ValueError(
            f"run.device must be 'cpu' or 'auto' here, where torch finds no GPU; got {name!r}"
        )
    if number and int(number) >= there:
        raise ValueError(f"run.device must be below cuda:{there}, there are {there}; got {name!r}")
    if processes() == 1:
        return torch.device("cuda", int(number or 0))
    if number:
        raise ValueError(
            f"run.device must be 'auto', 'cuda' or 'cpu' with several processes; got {name!r}"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % there)


def name_of(device: torch.device) -> str:
    """A device's name: of CPUs there is one."""
    return "cpu" if device.type == "cpu" else str(device)


def check_sharding(config: Config, device: torch.device) -> None:
    """Check that there is something to share out.

    Raises:
        ValueError: a single process, or CPUs.
    """
    if config.train.sharding == "none":
        return
    if processes() == 1:
        raise ValueError(
            "train.sharding must be 'none' for one process; several are started by "
            "`torchrun --nproc-per-node N -m cmsolvers train ...`"
        )
    if device.type == "cpu":
        raise ValueError("train.sharding must be 'none' on CPUs; 'fsdp2' is for GPUs")


def accelerator_of(config: Config, device: torch.device) -> Accelerator | None:
    """What joins several processes; None for one.

    Raises:
        ModuleNotFoundError: accelerate is not installed.
        ValueError: as `check_sharding`.
    """
    check_sharding(config, device)
    if processes() == 1:
        return None
    try:
        from accelerate import Accelerator
        from accelerate.utils import FullyShardedDataParallelPlugin
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "several processes need accelerate, which is not installed; the extra `train` brings "
            'it: pip install --no-build-isolation ".[train]"'
        ) from error
    given: dict[str, Any] = {}
    if config.train.sharding != "none":
        given["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=UNIT
        )
    return Accelerator(cpu=device.type == "cpu", mixed_precision=config.train.precision, **given)
