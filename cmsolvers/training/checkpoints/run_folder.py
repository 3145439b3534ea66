"""The folder of a run: its checkpoints by step, of which the newest are kept, and its lock."""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.checkpoints import disk
from cmsolvers.training.checkpoints.errors import CheckpointError
from cmsolvers.training.checkpoints.folders import read_checkpoint, write_checkpoint
from cmsolvers.training.checkpoints.lock import lock

_STEP = re.compile(r"step-(\d{8,})")
_TRIES = 5
_ASIDE = re.compile(r"\.(step-\d{8,})\.previous")


@dataclass(frozen=True)
class Found:
    """A checkpoint that was read whole.

    Attributes:
        path: of its folder.
        step: of the run.
        groups: its tensors.
        about: its description.
        skipped: why newer ones were refused, one text each.
    """

    path: Path
    step: int
    groups: dict[str, dict[str, Tensor]]
    about: dict[str, object]
    skipped: list[str]


class RunFolder:
    """Where a run keeps its checkpoints: PATH/checkpoints/step-00001000 and so on.

    Args:
        path: the run's folder; nothing is created before something is written.
        keep: how many of the newest valid checkpoints stay.

    Raises:
        TypeError, ValueError: keep is no int, or below 1.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep: int = 3) -> None:
        self.path = Path(path)
        self.keep = check.count("keep", keep)
        self._held = False
        self._verified: dict[Path, object] = {}  # what a checkpoint was like when it was valid

    @property
    def _folder(self) -> Path:
        return self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only trainer of this folder; what killed ones left unfinished is removed.

        Of several ranks the first one takes the lock, for the others nothing happens. Within its
        block the same object may be locked again, by a trainer that is given it.

        Raises:
            FolderInUseError: another trainer is at work; the text names its process and host.
            OSError: the folder cannot be made or written.
        """
        if _rank() != 0 or self._held:
            yield
            return
        disk.make_folders(self.path)
        with lock(self.path / "lock"), self._holding():
            for folder in (self.path, self._folder):
                disk.remove_strays(folder)
            for place in self.checkpoints():
                disk.settle(place)
            yield

    @contextmanager
    def _holding(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def checkpoints(self) -> list[Path]:
        """The checkpoints' folders, from the first step to the last, valid or not."""
        if not self._folder.is_dir():
            return []
        names = set()
        for name in os.listdir(self._folder):
            aside = _ASIDE.fullmatch(name)  # a kill came between two renames
            names.add(aside[1] if aside else name)
        return [self._folder / n for n in sorted(filter(_STEP.fullmatch, names), key=_step_of)]

    def save(
        self, step: int, groups: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, object]
    ) -> Path:
        """Write the checkpoint of a step, then remove all that are older than the newest `keep`.

        Only valid ones count, so damage never costs the last good one. One rank calls this.

        Args:
            step: steps done; also goes into `about`.
            groups: as for `write_checkpoint`.
            about: as for `write_checkpoint`.

        Returns:
            The checkpoint's path.

        Raises:
            TypeError, ValueError, OSError: as `write_checkpoint`; every older checkpoint stays.
        """
        step = check.count("step", step, least=0)
        disk.make_folders(self._folder)
        place = self._folder / f"step-{step:08d}"
        write_checkpoint(place, groups, {**about, "step": step})
        self._verified[place] = _signature(place)
        try:
            self._prune(place)
        except OSError as error:  # the new one is whole: no reason to end a run
            warnings.warn(f"old checkpoints could not be removed: {error}", stacklevel=2)
        return place

    def _prune(self, new: Path) -> None:
        valid = 0
        for place in reversed(self.checkpoints()):
            if place == new or (valid < self.keep and self._is_valid(place)):
                valid += 1
            elif valid >= self.keep:
                self._verified.pop(place, None)
                # First out of sight in one act: a kill must not leave half of it behind.
                going = disk.name_beside(place, "removed")
                os.rename(place, going)
                disk.remove(going)

    def _is_valid(self, place: Path) -> bool:
        """Whether it can be read; one that was valid is read again only if its files changed."""
        signature = _signature(place)
        if signature != self._verified.get(place):
            try:
                _read_step(place, None)
            except (CheckpointError, OSError):
                self._verified.pop(place, None)
                return False
            self._verified[place] = signature
        return True

    def newest(self, only: Collection[str] | None = None) -> Found | None:
        """The newest valid checkpoint; None where there is none at all, valid or not.

        Args:
            only: groups to read, as for `read_checkpoint`.

        Raises:
            CheckpointError: there are some, and each is damaged; the text says how.
        """
        for _ in range(_TRIES):
            skipped: list[str] = []
            for place in reversed(self.checkpoints()):
                try:
                    groups, about = _read_step(place, only)
                except (CheckpointError, OSError) as error:
                    if place not in self.checkpoints():
                        break  # a trainer at work has removed it: there are newer ones
                    skipped.append(str(error))
                    continue
                return Found(place, _step_of(place.name), groups, about, skipped)
            else:
                if not skipped:
                    return None
                raise CheckpointError(
                    f"{self._folder} must hold an undamaged checkpoint; there is none: "
                    + "; ".join(skipped)
                )
        raise CheckpointError(f"{self._folder} must not change while it is read; it did each time")

    def probe(self, bytes_needed: int) -> None:
        """Find out before the first step whether checkpoints can be written here.

        Args:
            bytes_needed: of one checkpoint, as `stored_bytes` counts them. Room is needed for
                those that are kept and for the one that is written before one of them goes.

        Raises:
            OSError: the folder cannot be made or written, or its disk has no room; says which.
        """
        bytes_needed = check.count("bytes_needed", bytes_needed, least=0)
        disk.make_folders(self._folder)
        probe = disk.name_beside(self._folder / "probe", "partial")
        try:
            disk.write_file(probe, [memoryview(bytes(4096))])
        finally:
            disk.remove(probe)
        missing = max(self.keep + 1 - len(self.checkpoints()), 1)
        free, needed = shutil.disk_usage(self._folder).free, missing * bytes_needed
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"the disk must have room for {missing} checkpoints, {needed / 1e6:.1f} MB; "
                f"{free / 1e6:.1f} MB are free",
                str(self._folder),
            )


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def _step_of(name: str | Path) -> int:
    return int(Path(name).name.removeprefix("step-"))


def _read_step(
    place: Path, only: Collection[str] | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    groups, about = read_checkpoint(place, only)
    if about.get("step") != _step_of(place):
        raise CheckpointError(f"{place} must be of its step; it is of step {about.get('step')}")
    return groups, about


def _signature(place: Path) -> object:
    """What changes when someone writes to a checkpoint's files."""
    try:
        with os.scandir(place) as entries:
            states = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError:
        return None
    return {n: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in states.items()}
