"""The state of a run, as a checkpoint holds it: gathered from shards, checked whole, then set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.training.averages import EMA
from cmsolvers.training.checkpoints import (
    check_finite,
    checked_optimizer_state,
    describe_optimizer,
    hyperparameters,
    optimizer_tensors,
    set_optimizer_state,
)
from cmsolvers.training.step.placement import placed_like, whole
from cmsolvers.training.step.precision import Precision
from cmsolvers.training.training_settings import COURSE, FIXED, TrainingSettings

Groups = Mapping[str, Mapping[str, Tensor]]


class TrainingState:
    """Network, averages, optimiser and scale of a run, as groups of tensors and a description.

    Args:
        network: as it lies on its devices.
        averages: of it.
        optimizer: of its parameters; new.
        precision: of the run.
        settings: of the run.
    """

    def __init__(
        self,
        network: nn.Module,
        averages: Mapping[str, EMA[nn.Module]],
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        settings: TrainingSettings,
    ) -> None:
        self.network, self.averages, self.optimizer = network, averages, optimizer
        self.precision, self.settings = precision, settings
        self._began = hyperparameters(optimizer)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of whole tensors, where they lie; all processes of a sharded run must ask."""
        groups = {
            "network": dict(self.network.state_dict()),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        groups |= {f"average.{name}": ema.state_dict() for name, ema in self.averages.items()}
        if self.precision.scale is not None:
            groups["scaler"] = self.precision.tensors()
        return {
            group: {name: whole(value) for name, value in members.items()}
            for group, members in groups.items()
        }

    def outline(self) -> dict[str, dict[str, Tensor]]:
        """About what a checkpoint will hold, to know how large it gets: nothing is gathered."""
        network = dict(self.network.state_dict())
        return {
            "network": network,
            **{f"average.{name}": ema.state_dict() for name, ema in self.averages.items()},
            **{f"optimizer.{moment}": network for moment in (1, 2)},
        }

    def about(self) -> dict[str, object]:
        """The description beside the tensors."""
        return {
            "settings": self.settings.about(),
            "optimizer": describe_optimizer(self.optimizer, self._began),
        }

    def check_finite(self, groups: Groups) -> None:
        """Refuse a state that is not worth keeping.

        Raises:
            FloatingPointError: an entry is not finite; the text names it.
        """
        modules = {"network": self.network}
        modules |= {f"average.{name}": ema.module for name, ema in self.averages.items()}
        masks = {n: dict(m.named_buffers(remove_duplicate=False)) for n, m in modules.items()}
        check_finite(groups, masks)

    def checked(
        self, path: object, groups: Groups, about: Mapping[str, object]
    ) -> Callable[[], None]:
        """What sets the state to that of a checkpoint, once everything in it was found to fit.

        Raises:
            ValueError: something is missing or does not fit; the text names it. Nothing was
                changed.
        """
        settings = about.get("settings")
        changed = _changed(
            path, self.settings.about(), settings if isinstance(settings, dict) else {}
        )
        modules = {"network": self.network}
        modules |= {f"average.{name}": ema.module for name, ema in self.averages.items()}
        for group, module in modules.items():
            if group not in groups:
                kind = "average" if group.startswith("average.") else "group of tensors"
                raise ValueError(f"{path} must hold the {kind} {group!r} to resume; it does not")
            named = dict(module.state_dict())
            if group != "network":
                named["ema_steps"] = torch.tensor(0)
            _check_tensors(path, group, named, groups[group])
        lost = sorted(g for g in groups if g.startswith("average.") and g not in modules)
        if lost:
            raise ValueError(
                f"averages must hold {lost[0].removeprefix('average.')!r} to resume from {path}; "
                f"got {', '.join(map(repr, self.averages)) or 'none'}"
            )
        try:
            optimizer = checked_optimizer_state(
                self.optimizer, groups.get("optimizer", {}), about.get("optimizer"), self.network
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        scaler = dict(groups.get("scaler", {}))
        if scaler and self.precision.scale is not None:
            _check_tensors(path, "scaler", self.precision.tensors(), scaler)

        def put() -> None:
            _put(self.network, groups["network"])
            for name, ema in self.averages.items():
                members = dict(groups[f"average.{name}"])
                ema.steps = int(members.pop("ema_steps"))
                _put(ema.module, members)
            self._put_optimizer(optimizer)
            for name, value in self.precision.tensors().items():
                if name in scaler:
                    value.copy_(scaler[name])
            for text in changed:
                warnings.warn(text, RuntimeWarning, stacklevel=5)

        return put

    def _put_optimizer(self, state: dict[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, entries in state["state"].items():
            like = parameters[index]
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.shape == like.shape:
                    entries[name] = placed_like(value, like)
        set_optimizer_state(self.optimizer, state)


def _changed(path: object, ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """What to warn of, one text per setting.

    Raises:
        ValueError: a setting that must be the same is not.
    """
    for name in FIXED:
        if name in theirs and theirs[name] != ours[name]:
            raise ValueError(
                f"{path}: settings.{name} must be {theirs[name]} to resume; got {ours[name]}"
            )
    return [
        f"settings.{name} is {ours[name]} from here on; {path} had {theirs[name]}"
        for name in COURSE
        if name in theirs and theirs[name] != ours[name]
    ]


def _check_tensors(
    path: object, group: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> None:
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours:
            side = ("the checkpoint", "the run") if name not in theirs else ("the run", path)
            raise ValueError(
                f"{path} must hold the tensors of this run; {side[0]} has no {group}/{name}"
            )
        mine, other = ours[name], theirs[name]
        if mine.shape != other.shape or mine.dtype != other.dtype:
            raise ValueError(
                f"{path}: {group}/{name} must be {check.describe(mine)}; "
                f"the checkpoint has {check.describe(other)}"
            )


def _put(module: nn.Module, members: Mapping[str, Tensor]) -> None:
    """Load a state dict of whole tensors into a module that may be sharded."""
    mine = module.state_dict()
    module.load_state_dict({n: placed_like(value, mine[n]) for n, value in members.items()})
