"""Checkpoints as safetensors files: groups of named tensors, and a JSON description."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmsolvers import checks as check

FORMAT = "cmsolvers-1"


def write_checkpoint(
    path: str | os.PathLike[str],
    groups: Mapping[str, Mapping[str, Tensor]],
    about: Mapping[str, object],
) -> None:
    """Write groups of tensors and a description; an old file stays until the new is complete.

    Args:
        path: the file, its folder must exist.
        groups: group name (without "/") -> tensor name -> tensor.
        about: anything JSON can hold.

    Raises:
        ValueError: a group name with "/".
    """
    tensors: dict[str, Tensor] = {}
    for group, members in groups.items():
        if "/" in group:
            raise ValueError(f'group names must not contain "/"; got {group!r}')
        for name, value in members.items():
            # Copied, because safetensors refuses tensors that share memory.
            tensors[f"{group}/{name}"] = value.detach().cpu().clone().contiguous()
    # One entry: safetensors writes several in an order that changes from run to run.
    text = json.dumps({"format": FORMAT, "about": dict(about)}, sort_keys=True)
    temporary = Path(path).with_name(Path(path).name + ".part")
    save_file(tensors, temporary, metadata={"cmsolvers": text})
    os.replace(temporary, path)


def read_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """What `write_checkpoint` wrote: (groups, about), on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no checkpoint of this library.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a checkpoint file; there is none at {path}")
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("cmsolvers", "")
            about = _about(text)
            if about is None:
                raise ValueError(f"path must be a {FORMAT} checkpoint; got {path}")
            for name in list(file.keys()):
                group, _, member = name.partition("/")
                groups.setdefault(group, {})[member] = file.get_tensor(name)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"path must be a safetensors file; {path} is not: {error}") from error
    return groups, about


def _about(text: str) -> dict[str, object] | None:
    """The description in a file's header; None in a file that this library did not write."""
    try:
        header = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        return None
    about = header.get("about")
    return about if isinstance(about, dict) else None


def check_finite(
    groups: Mapping[str, Mapping[str, Tensor]], buffers: Mapping[str, Iterable[str]]
) -> None:
    """Check that a state is worth keeping: no NaN anywhere, and no infinity outside of buffers.

    Args:
        groups: as for `write_checkpoint`.
        buffers: group name -> names that may hold infinities, as masks of attention do.

    Raises:
        FloatingPointError: names the first tensor that is not finite.
    """
    for group, members in groups.items():
        masks = set(buffers.get(group, ()))
        for name, value in members.items():
            bad = torch.isnan(value) if name in masks else ~torch.isfinite(value)
            if bad.any():
                raise FloatingPointError(
                    f"what is saved must be finite; {group}/{name} has "
                    f"{int(bad.sum())} entries of {value.numel()} that are not"
                )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, under the names "parameter index.entry"."""
    flat: dict[str, Tensor] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"optimizer.{name} must be a tensor; got {check.describe(value)}")
            flat[f"{index}.{name}"] = value
    return flat


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` read; its parameter groups stay."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
