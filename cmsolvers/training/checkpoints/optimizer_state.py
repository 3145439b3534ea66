"""An optimiser's state as tensors and JSON, checked as a whole before anything is set.

The tensors go to a group of a checkpoint, under "parameter.entry". What is no tensor, and what is
needed to notice that something is missing, goes to its description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cmsolvers import checks as check

Groups: TypeAlias = list[dict[str, object]]

_WAY_OF_COMPUTING = ("foreach", "fused", "capturable", "differentiable")
_NOT_COMPARED = ("params", "param_names", "lr", "initial_lr", *_WAY_OF_COMPUTING)
"""The rate belongs to a run's schedule, and the same state serves every way of computing a step."""
_NUMBERS = (bool, int, float, str, type(None))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state, under the names "parameter's index.entry".

    Raises:
        TypeError: an entry is neither a tensor nor a number, text or None, as with LBFGS.
    """
    flat: dict[str, Tensor] = {}
    for index, entries in _entries(optimizer).items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                flat[f"{index}.{name}"] = value
    return flat


def hyperparameters(optimizer: torch.optim.Optimizer) -> Groups:
    """What decides the steps of each parameter group, the learning rate excepted, as JSON.

    A trainer that reads it when the optimiser is new can tell later, by `describe_optimizer`, which
    of these values move in training, as the counters and estimates of some optimisers do.
    """
    return [
        {name: _plain(value) for name, value in group.items() if name not in _NOT_COMPARED}
        for group in optimizer.param_groups
    ]


def describe_optimizer(
    optimizer: torch.optim.Optimizer, began: Sequence[Mapping[str, object]] | None = None
) -> dict[str, object]:
    """What a checkpoint's description says of an optimiser beside its tensors; it is JSON.

    Args:
        optimizer: any that keeps tensors, numbers, text or None for each parameter.
        began: its `hyperparameters` when it was new; None: none of them moves.

    Raises:
        TypeError: as `optimizer_tensors`; or a value that moves is neither number nor text.
    """
    shapes = [[list(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    entries: dict[str, list[str]] = {}
    numbers: dict[str, object] = {}
    for index, state in _entries(optimizer).items():
        entries[str(index)] = sorted(name for name, v in state.items() if isinstance(v, Tensor))
        numbers |= {f"{index}.{n}": v for n, v in state.items() if not isinstance(v, Tensor)}
    groups = hyperparameters(optimizer)
    moved: Groups = [{} for _ in groups]
    for group, first, moving in zip(groups, began or groups, moved, strict=True):
        for name in [n for n, value in group.items() if first.get(n) != value]:
            moving[name] = group.pop(name)
            if not isinstance(moving[name], _NUMBERS):
                raise TypeError(
                    f"optimizer.param_groups must move numbers alone; {name} has become "
                    f"{check.describe(moving[name])}"
                )
    return {
        "kind": type(optimizer).__name__,
        "shapes": shapes,
        "hyperparameters": groups,
        "moved": moved,
        "entries": entries,
        "numbers": numbers,
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    about: object,
    network: nn.Module | None = None,
) -> None:
    """Give an optimiser the state that was read; its learning rates stay.

    Args:
        optimizer: of the kind and with the hyperparameters of the one that was saved.
        tensors: what `optimizer_tensors` gave.
        about: what `describe_optimizer` gave.
        network: whose parameters' names are used in errors.

    Raises:
        ValueError: something is missing or does not fit; the optimiser stays as it was.
    """
    set_optimizer_state(optimizer, checked_optimizer_state(optimizer, tensors, about, network))


def checked_optimizer_state(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    about: object,
    network: nn.Module | None = None,
) -> dict[str, Any]:
    """The state dict that `set_optimizer_state` takes; the optimiser is only looked at.

    Args and errors are those of `load_optimizer_tensors`.
    """
    if not isinstance(about, Mapping) or not about:
        raise ValueError("the checkpoint must hold the optimizer's state; it holds none")
    names = _names(optimizer, network)
    try:
        _check_kind(optimizer, about, names)
        entries = {int(index): list(found) for index, found in about["entries"].items()}
        numbers = {tuple(name.split(".", 1)): value for name, value in about["numbers"].items()}
        moved = [dict(group) for group in about["moved"]]
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"optimizer must be described as it is saved; got {error!r}") from error
    state: dict[int, dict[str, object]] = {index: {} for index in entries}
    left = dict(tensors)
    for index, found in entries.items():
        for entry in found:
            value = left.pop(f"{index}.{entry}", None)
            if value is None:
                raise ValueError(
                    f"the optimizer's state must be whole; {entry} of {_named(names, index)} is "
                    "missing"
                )
            state[index][entry] = value.clone()
    if left:
        raise ValueError(f"the optimizer's state must be whole; {min(left)} belongs to nothing")
    for (index, entry), value in numbers.items():
        state.setdefault(int(index), {})[entry] = value
    beyond = [index for index in state if not 0 <= index < len(names)]
    if beyond:
        raise ValueError(f"optimizer must have a parameter {beyond[0]}; it has {len(names)}")
    groups = optimizer.state_dict()["param_groups"]
    return {
        "state": state,
        "param_groups": [g | m for g, m in zip(groups, moved, strict=True)],
    }


def set_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Set what `checked_optimizer_state` returned; every tensor keeps its dtype and bits."""
    optimizer.load_state_dict(state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in state["state"].items():
        mine = optimizer.state[parameters[index]]
        for name, value in entries.items():
            # load_state_dict gives floating tensors the dtype of their parameter, and spoils texts.
            if not isinstance(value, Tensor):
                mine[name] = value
            elif mine[name].dtype != value.dtype:
                mine[name] = value.to(mine[name].device)


def _entries(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, object]]:
    """Parameter's index -> entry -> value, of values that can be saved."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("optimizer must not be LBFGS: its history of steps cannot be saved")
    state: dict[int, dict[str, object]] = optimizer.state_dict()["state"]
    for index, entries in state.items():
        for name, value in entries.items():
            if not isinstance(value, (Tensor, *_NUMBERS)):
                raise TypeError(
                    f"optimizer must keep tensors, numbers, text or None to be saved; {name} of "
                    f"parameter {index} is {check.describe(value)}"
                )
    return state


def _plain(value: object) -> object:
    """A hyperparameter as JSON gives it back."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, _NUMBERS):
        return value
    return getattr(value, "__name__", type(value).__name__)


def _names(optimizer: torch.optim.Optimizer, network: nn.Module | None) -> list[str]:
    """What errors call each parameter, in the order of their indices."""
    known = {} if network is None else {p: name for name, p in network.named_parameters()}
    names: list[str] = []
    for group in optimizer.param_groups:
        given = group.get("param_names", [])
        for i, parameter in enumerate(group["params"]):
            other = given[i] if i < len(given) else f"parameter {len(names)}"
            names.append(known.get(parameter, other))
    return names


def _named(names: list[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else f"parameter {index}"


def _check_kind(
    optimizer: torch.optim.Optimizer, about: Mapping[str, Any], names: list[str]
) -> None:
    kind = type(optimizer).__name__
    if about["kind"] != kind:
        raise ValueError(
            f"optimizer must be {about['kind']} to resume, as in the checkpoint; got {kind}"
        )
    shapes = [[list(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    theirs = [len(group) for group in about["shapes"]]
    if theirs != [len(group) for group in shapes]:
        raise ValueError(
            f"optimizer must have groups of {theirs} parameters to resume; got "
            f"{[len(group) for group in shapes]}"
        )
    for ours, saved, name in zip(chain(*shapes), chain(*about["shapes"]), names, strict=True):
        if ours != saved:
            raise ValueError(f"{name} must have shape {saved} to resume; got {ours}")
    groups = zip(hyperparameters(optimizer), about["hyperparameters"], about["moved"], strict=True)
    for number, (mine, saved, moved) in enumerate(groups):
        for name in sorted({*mine, *saved} - {*moved}):
            if name not in mine or name not in saved or mine[name] != saved[name]:
                raise ValueError(
                    f"optimizer.param_groups[{number}][{name!r}] must be "
                    f"{saved.get(name, 'left out')} to resume; got {mine.get(name, 'none')}"
                )
