"""A checkpoint is a folder: one safetensors file per group of tensors, about.json, manifest.json.

Files that the manifest does not list are never opened, whatever they are; nothing is unpickled.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from cmsolvers.training.checkpoints import disk, tensor_file
from cmsolvers.training.checkpoints.errors import CheckpointError
from cmsolvers.training.checkpoints.manifest import (
    ABOUT,
    GROUP_NAME,
    MANIFEST,
    SUFFIX,
    Entry,
    Manifest,
)

_LONGEST_MANIFEST = 1 << 26
_TRIES = 5


def write_checkpoint(
    path: str | os.PathLike[str],
    groups: Mapping[str, Mapping[str, Tensor]],
    about: Mapping[str, object],
) -> None:
    """Write groups of tensors and a description as a folder, so that it survives a loss of power.

    It is written beside its place, file by file to the disk, the manifest last, and then takes the
    place of an older checkpoint in one act. So at every instant a whole checkpoint is there.

    Args:
        path: the folder to be; the one that it will be in must exist. What is there already must be
            a checkpoint.
        groups: group name -> tensor name -> tensor, on any device. A group's name is made of
            letters, digits, ".", "_" and "-".
        about: anything that JSON can hold.

    Raises:
        TypeError: about cannot be JSON, or a tensor cannot be stored.
        ValueError: a group's name of other letters.
        OSError: nothing can be written, or something else is at `path`. What was there stays.
    """
    plain: dict[str, dict[str, Tensor]] = {}
    pairs: dict[str, list[str]] = {}
    for group, members in groups.items():
        if not GROUP_NAME.fullmatch(group):
            raise ValueError(
                "group names must not contain anything but up to 100 letters, digits, '.', '_' and "
                f"'-'; got {group!r}"
            )
        plain[group] = {n: tensor_file.stored(f"{group}/{n}", t) for n, t in members.items()}
        if any(t.is_complex() for t in members.values()):
            pairs[group] = [n for n, t in members.items() if t.is_complex()]
    text = (json.dumps(dict(about), sort_keys=True, indent=1) + "\n").encode("ascii")
    place = Path(os.path.realpath(path))
    _check_replaceable(place)
    disk.remove_strays(place.parent, place.name)
    folder = disk.name_beside(place, "partial")
    try:
        os.mkdir(folder)
        files = {}
        for group, tensors in plain.items():
            written = disk.write_file(folder / (group + SUFFIX), tensor_file.pieces(tensors))
            files[group + SUFFIX] = Entry(*written)
        files[ABOUT] = Entry(*disk.write_file(folder / ABOUT, [memoryview(text)]))
        manifest = Manifest(files, pairs).text()
        disk.write_file(folder / MANIFEST, [memoryview(manifest)])
        disk.sync_folder(folder)
        disk.put_in_place(folder, place)
    except BaseException:
        disk.remove(folder)
        raise


def _check_replaceable(place: Path) -> None:
    """Nothing but a checkpoint may go when one takes its place."""
    if not place.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "the folder that a checkpoint is to be in must exist", str(place.parent)
        )
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise FileExistsError(
            errno.EEXIST, "path must be free or a checkpoint; a file is", str(place)
        )
    for entry in place.iterdir():
        ours = entry.name in (ABOUT, MANIFEST) or entry.name.endswith(SUFFIX)
        if not (ours or entry.name.startswith(".")) or entry.is_dir():
            raise FileExistsError(
                errno.EEXIST,
                f"path must be free or a checkpoint and no more; {entry.name} would be lost in",
                str(place),
            )


def read_checkpoint(
    path: str | os.PathLike[str], only: Collection[str] | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """What `write_checkpoint` wrote, on the CPU; each byte of it was checked against the manifest.

    Args:
        path: the folder.
        only: names of groups to read; None: all. Files of other groups may be damaged or missing.

    Returns:
        (groups, about).

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: no checkpoint, a damaged one, or one without a group of `only`.
    """
    place = Path(path)
    for _ in range(_TRIES):
        found = place
        if not os.path.lexists(place) and disk.name_aside(place).is_dir():
            found = disk.name_aside(place)
        try:
            folder = _Folder(found)
        except FileNotFoundError:
            # Asked again last: between the two renames of a writer it is aside, then in its place.
            aside = disk.name_aside(place).is_dir()
            if not aside and not os.path.exists(place):
                raise
            continue
        with folder:
            try:
                return _read(folder, only)
            except CheckpointError as error:
                if folder.is_still_there():
                    raise CheckpointError(
                        f"path must be an undamaged checkpoint; {path}: {error}"
                    ) from error
        # Another one took its place while it was read.
    raise CheckpointError(f"path must stay while it is read; {path} was replaced {_TRIES} times")


def group_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of a checkpoint's groups, as its manifest lists them; they are not read.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: no checkpoint, or a damaged manifest.
    """
    place = Path(path)
    if not os.path.lexists(place) and disk.name_aside(place).is_dir():
        place = disk.name_aside(place)
    with _Folder(place) as folder:
        try:
            return list(Manifest.read(folder.read(MANIFEST, None)).groups())
        except CheckpointError as error:
            raise CheckpointError(
                f"path must be an undamaged checkpoint; {path}: {error}"
            ) from error


def _read(
    folder: _Folder, only: Collection[str] | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    data = folder.read(MANIFEST, None)
    try:
        manifest = Manifest.read(data)
    except CheckpointError as error:
        raise CheckpointError(f"{MANIFEST} {error}") from error
    wanted = manifest.groups()
    if only is not None:
        missing = sorted(set(only) - set(wanted))
        if missing:
            raise CheckpointError(f"it has no group {missing[0]!r}; there are {wanted}")
        wanted = [group for group in wanted if group in set(only)]
    try:
        about = json.loads(folder.read(ABOUT, manifest.files[ABOUT]))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{ABOUT} is no JSON: {error}") from error
    if not isinstance(about, dict):
        raise CheckpointError(f"{ABOUT} must hold a JSON object; got {type(about).__name__}")
    # All sizes before the first long read: most damage shows here.
    for group in wanted:
        folder.check_size(group + SUFFIX, manifest.files[group + SUFFIX])
    groups = {}
    for group in wanted:
        data = folder.read(group + SUFFIX, manifest.files[group + SUFFIX])
        try:
            groups[group] = tensor_file.parse(data, manifest.complex_names.get(group, []))
        except CheckpointError as error:
            raise CheckpointError(f"{group + SUFFIX} {error}") from error
    return groups, about


class _Folder:
    """An open folder: its files stay those of one checkpoint if another one takes its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Opened, not asked for first: another one may take its place between question and answer.
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                errno.ENOENT, "path must be a checkpoint's folder; there is none", str(path)
            ) from error
        except NotADirectoryError as error:
            raise CheckpointError(
                f"path must be a checkpoint's folder; {path} is a file"
            ) from error

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def is_still_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def check_size(self, name: str, entry: Entry) -> None:
        os.close(self._open(name, entry))

    def read(self, name: str, entry: Entry | None) -> bytes:
        """A file's bytes, which are those that were hashed; None: the manifest's own."""
        descriptor = self._open(name, entry)
        with open(descriptor, "rb", buffering=0) as file:
            try:
                data = file.readall()
            except MemoryError as error:
                raise CheckpointError(f"{name} does not fit into memory") from error
        if entry is not None:
            if len(data) != entry.size:
                raise CheckpointError(_sizes(name, len(data), entry))
            if not entry.matches(data):
                raise CheckpointError(f"{name} is damaged: its SHA-256 is not the manifest's")
        return data

    def _open(self, name: str, entry: Entry | None) -> int:
        # No link is followed, and a pipe does not keep us waiting.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except FileNotFoundError as error:
            why = "unfinished or no checkpoint" if name == MANIFEST else "its manifest lists it"
            raise CheckpointError(f"{name} is missing: {why}") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CheckpointError(f"{name} must be a file; it is a link") from error
            raise
        state = os.fstat(descriptor)
        problem = None
        if not stat.S_ISREG(state.st_mode):
            problem = f"{name} must be a file; it is none"
        elif entry is None and state.st_size > _LONGEST_MANIFEST:
            problem = f"{name} is damaged: {state.st_size} bytes are too many"
        elif entry is not None and state.st_size != entry.size:
            problem = _sizes(name, state.st_size, entry)
        if problem is not None:
            os.close(descriptor)
            raise CheckpointError(problem)
        return descriptor


def _sizes(name: str, size: int, entry: Entry) -> str:
    return f"{name} is damaged: it has {size} bytes, the manifest says {entry.size}"
