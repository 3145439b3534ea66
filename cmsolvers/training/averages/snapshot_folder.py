"""Snapshots of averages on disk: FOLDER/snapshots/step-00001000 and so on, as checkpoints are."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.averages.post_hoc import Reconstruction, Snapshot, reconstruct
from cmsolvers.training.averages.profiles import Profile
from cmsolvers.training.checkpoints import CheckpointError, disk, read_checkpoint, write_checkpoint

_STEP = re.compile(r"step-(\d{8,})")
STORED = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Dtypes of snapshots by name."""


class SnapshotFolder:
    """The snapshots of a run.

    Args:
        path: the run's folder; nothing is created before the first snapshot.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path) / "snapshots"

    def paths(self) -> list[Path]:
        """Folders of the snapshots, from the first step to the last, valid or not."""
        if not self.path.is_dir():
            return []
        names = [name for name in os.listdir(self.path) if _STEP.fullmatch(name)]
        return [self.path / name for name in sorted(names, key=_step_of)]

    def write(
        self,
        step: int,
        groups: Mapping[str, Mapping[str, Tensor]],
        profiles: Mapping[str, Profile],
        dtypes: Mapping[str, torch.dtype],
    ) -> Path:
        """Write a snapshot, or replace that of the step.

        Args:
            step: of the training.
            groups: name of an average -> its tensors.
            profiles: name of an average -> its profile.
            dtypes: of tensors that were wider before.

        Raises:
            OSError: it cannot be written; older snapshots stay.
        """
        place = self.path / f"step-{check.count('step', step):08d}"
        disk.make_folders(self.path)
        about = {
            "snapshot": True,
            "step": step,
            "averages": {n: {"gamma": p.gamma, "updates": p.end} for n, p in profiles.items()},
            "dtypes": {n: str(dtype).removeprefix("torch.") for n, dtype in dtypes.items()},
        }
        write_checkpoint(place, {f"average.{n}": members for n, members in groups.items()}, about)
        return place

    def cut(self, step: int) -> None:
        """Remove snapshots of later steps: a run that goes on from here will make others.

        Raises:
            OSError: one cannot be removed.
        """
        disk.remove_strays(self.path)
        for place in self.paths():
            if _step_of(place.name) > step:
                going = disk.name_beside(place, "removed")
                os.rename(place, going)  # in one act: a kill leaves no half of it
                disk.remove(going)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots that can be read; of each, the description was read.

        Warns:
            RuntimeWarning: one is damaged.
        """
        found = []
        for place in self.paths():
            try:
                found += _described(place)
            except CheckpointError as error:
                warnings.warn(f"{error}; going on without it", RuntimeWarning, stacklevel=2)
        return found


def reconstruct_average(
    folder: str | os.PathLike[str], sigma_rel: float, step: int | None = None
) -> Reconstruction:
    """The power-function average of another width, from the snapshots of a run.

    `Snapshots` writes them while the run trains. The average's state goes into a network by
    `network.load_state_dict(made.tensors)`. One stored average is in memory at a time, and 8 bytes
    per weight of the network.

    Args:
        folder: of the run; in it, `snapshots` is read.
        sigma_rel: relative width of its profile, in (0, 12^-1/2].
        step: of the training that it ends at; None: the last snapshot's.

    Returns:
        Tensors and the relative error of the profile; see `Reconstruction`.

    Raises:
        FileNotFoundError: the folder has no snapshots.
        CheckpointError: each of them is damaged.
        ValueError: sigma_rel or step out of range.

    Warns:
        RuntimeWarning: a snapshot is damaged and not used, or the profile is off by more than 10 %.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), section 3.2 and appendix C.
    """
    place = SnapshotFolder(folder)
    if not place.paths():
        raise FileNotFoundError(f"folder must hold snapshots; there are none in {place.path}")
    snapshots = place.snapshots()
    while snapshots:
        try:
            return reconstruct(snapshots, sigma_rel, step)
        except _DamagedError as error:
            warnings.warn(f"{error}; going on without it", RuntimeWarning, stacklevel=2)
            snapshots = [s for s in snapshots if s.step != error.step]
    raise CheckpointError(f"{place.path} must hold an undamaged snapshot; there is none")


class _DamagedError(CheckpointError):
    def __init__(self, step: int, text: str) -> None:
        super().__init__(text)
        self.step = step


def _described(place: Path) -> list[Snapshot]:
    _, about = read_checkpoint(place, ())
    try:
        if not about["snapshot"] or about["step"] != _step_of(place.name):
            raise ValueError(f"it is of step {about['step']}")
        dtypes = {str(n): _dtype(name) for n, name in dict(about["dtypes"]).items()}  # type: ignore[call-overload]
        averages = dict(about["averages"])  # type: ignore[call-overload]
        profiles = {str(n): Profile(p["gamma"], p["updates"]) for n, p in averages.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place} must be a snapshot of averages: {error}") from error
    step = _step_of(place.name)
    return [
        Snapshot(step, profile, partial(_read, place, step, name), dtypes)
        for name, profile in profiles.items()
    ]


def _read(place: Path, step: int, name: str) -> Mapping[str, Tensor]:
    group = f"average.{name}"
    try:
        return read_checkpoint(place, [group])[0][group]
    except (CheckpointError, FileNotFoundError) as error:
        raise _DamagedError(step, str(error)) from error


def narrowed(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as a snapshot stores it: real numbers wider than `dtype` in that; others as is.

    Raises:
        ValueError: float16 cannot hold an entry.
    """
    if dtype is None or not value.is_floating_point() or value.element_size() <= dtype.itemsize:
        return value
    small = value.to(dtype)
    if dtype is torch.float16 and (small.isinf() & value.isfinite()).any():
        raise ValueError(f"{name} has entries that float16 cannot hold; use bfloat16 or float32")
    return small


def _dtype(name: object) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtypes must be names of dtypes; got {name!r}")
    return found


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))
