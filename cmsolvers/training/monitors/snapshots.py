"""Snapshots of averages on the way, for averages of any width afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.averages import (
    STORED,
    PowerDecay,
    Profile,
    SnapshotFolder,
    narrowed,
)
from cmsolvers.training.reports import StepReport, Training
from cmsolvers.training.step.placement import whole


class Snapshots:
    """A monitor that writes power-function averages to FOLDER/snapshots every so many steps.

    `reconstruct_average(FOLDER, sigma_rel)` makes averages of other widths of them. Two averages,
    of sigma_rel 0.05 and 0.10, and a few dozen snapshots are enough: for 32 of each the profile of
    0.07 is off by 0.1 %, those of 0.03 and 0.20 by 1 %. All snapshots stay; when a run goes on from
    an earlier step, those of later steps are removed. There is one at the last step too.

    Args:
        folder: of the run.
        every: steps between snapshots.
        averages: their names; None: all whose decay is a `PowerDecay`.
        dtype: "bfloat16" or "float16" take half of the space. Their rounding errors, 2^-9 and 2^-12
            of a weight, grow by `fit.gain`, which is below 10 for the widths above. float16 loses
            digits below 6e-5. None or "float32": as averages are, float64 narrowed by the latter.

    Raises:
        TypeError, ValueError: every is no int or below 1, or an unknown dtype.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int,
        averages: Sequence[str] | None = None,
        dtype: str | None = None,
    ) -> None:
        self.every = check.count("every", every)
        self._folder, self._names = SnapshotFolder(folder), averages
        self._dtype = None if dtype is None else STORED[check.choice("dtype", dtype, [*STORED])]

    def started(self, trainer: Training) -> None:
        """Remove snapshots of later steps.

        Raises:
            ValueError: an average is none, or not of a power-function profile.
            OSError: one cannot be removed.
        """
        for name in self._averages(trainer):
            ema = trainer.averages.get(name)
            if ema is None:
                raise ValueError(
                    f"averages must be of the run's, {', '.join(trainer.averages)}; got {name!r}"
                )
            if not _has_profile(trainer, name):
                raise ValueError(
                    f"average {name!r} must have decay=power_decay(sigma_rel) alone, without "
                    "warmup or a rate of the trainer's, to be put together afterwards"
                )
        self._folder.cut(trainer.step)

    def stepped(self, report: StepReport) -> None:
        """Nothing."""

    def reached(self, trainer: Training) -> None:
        """Write a snapshot.

        Raises:
            ValueError: float16 cannot hold a weight.
            OSError: nothing can be written.
        """
        if trainer.rank > 0 and not trainer.sharded:
            return
        groups: dict[str, dict[str, Tensor]] = {}
        profiles = {}
        for name in self._averages(trainer):
            ema = trainer.averages[name]
            if ema.steps:  # none before the first step that was not skipped
                profiles[name] = Profile(ema.decay.gamma, ema.steps)
                groups[name] = _gathered(ema.module.state_dict(), trainer)
        if trainer.rank == 0 and groups:
            stored, dtypes = _narrowed(groups, self._dtype)
            self._folder.write(trainer.step, stored, profiles, dtypes)

    def saved(self, path: Path) -> None:
        """Nothing."""

    def ended(self, trainer: Training) -> None:
        """Nothing."""

    def _averages(self, trainer: Training) -> Sequence[str]:
        if self._names is not None:
            return self._names
        found = [name for name in trainer.averages if _has_profile(trainer, name)]
        if not found:
            raise ValueError(
                "averages must hold one whose decay is power_decay(sigma_rel), for snapshots; "
                f"got {', '.join(trainer.averages) or 'none'}"
            )
        return found


def _has_profile(trainer: Training, name: str) -> bool:
    ema = trainer.averages[name]
    return isinstance(ema.decay, PowerDecay) and not ema.warmup and name not in trainer.decays


def _gathered(state: Mapping[str, Any], trainer: Training) -> dict[str, Tensor]:
    """Whole tensors in the first process, nothing in others; shards leave the device one by one."""
    found = {}
    for name, value in state.items():
        full = whole(value)
        if trainer.rank == 0:
            found[name] = full.cpu() if trainer.sharded else full
    return found


def _narrowed(
    groups: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, torch.dtype]]:
    """What is stored, on the CPU where that takes a copy anyway, and what it was before."""
    stored: dict[str, dict[str, Tensor]] = {}
    before = {}
    for group, members in groups.items():
        stored[group] = {}
        for name, value in members.items():
            small = narrowed(name, value, dtype)
            if small is not value:
                before[name], small = value.dtype, small.cpu()
            stored[group][name] = small
    return stored, before
