"""The manifest of a checkpoint: which files it has, and the SHA-256 of each.

It is written last, so a folder without one is unfinished. It guards itself too: it holds the digest
of its own content, and is read only in the one spelling that it is written in. So no flipped bit
passes, be it in a space or in a letter's case.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cmsolvers.training.checkpoints.errors import CheckpointError

FORMAT = "cmsolvers-2"
MANIFEST = "manifest.json"
ABOUT = "about.json"
SUFFIX = ".safetensors"
GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """A file as it was written."""

    size: int
    sha256: str

    def matches(self, data: bytes) -> bool:
        """Whether these are the bytes that were written."""
        return hashlib.sha256(data).hexdigest() == self.sha256


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is made of.

    Attributes:
        files: name -> what it must be.
        complex_names: group -> its tensors that are stored as pairs of real numbers.
    """

    files: Mapping[str, Entry]
    complex_names: Mapping[str, list[str]]

    def groups(self) -> list[str]:
        """Names of the groups of tensors, in order."""
        return sorted(name.removesuffix(SUFFIX) for name in self.files if name != ABOUT)

    def text(self) -> bytes:
        """The content of the manifest's file."""
        body: dict[str, object] = {
            "format": FORMAT,
            "files": {n: {"bytes": e.size, "sha256": e.sha256} for n, e in self.files.items()},
            "complex": {group: sorted(names) for group, names in self.complex_names.items()},
        }
        return _spelled(body | {"sha256": _digest(body)})

    @staticmethod
    def read(data: bytes) -> Manifest:
        """The inverse of `text`.

        Raises:
            CheckpointError: damaged, or of another format.
        """
        try:
            body = json.loads(data.decode("ascii"))
            spelled = _spelled(body)
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"is damaged: {error}") from error
        if not isinstance(body, dict):
            raise CheckpointError(f"must hold a JSON object; got {type(body).__name__}")
        if body.get("format") != FORMAT:
            raise CheckpointError(f"must be of format {FORMAT!r}; got {body.get('format')!r:.60}")
        found = body.pop("sha256", None)
        if found != _digest(body):
            raise CheckpointError("is damaged: its content has not the SHA-256 that it says")
        if spelled != data:
            raise CheckpointError("is damaged: its spelling is not the one it was written in")
        try:
            files = {_file_name(name): _entry(entry) for name, entry in body["files"].items()}
            names = {group: _names(entry) for group, entry in body["complex"].items()}
            if set(body) != {"format", "files", "complex"} or ABOUT not in files:
                raise ValueError(f"keys {sorted(body)}, files {sorted(files)}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"must list the files of a checkpoint; got {error}") from error
        return Manifest(files, names)


def _spelled(body: object) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1) + "\n").encode("ascii")


def _digest(body: object) -> str:
    return hashlib.sha256(_spelled(body)).hexdigest()


def _file_name(name: object) -> str:
    group = name.removesuffix(SUFFIX) if isinstance(name, str) else ""
    if name != ABOUT and (name == group or not GROUP_NAME.fullmatch(group)):
        raise ValueError(f"a file of the name {name!r}")
    return str(name)


def _entry(entry: object) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
        raise ValueError(f"an entry {entry!r:.60}")
    size, digest = entry["bytes"], entry["sha256"]
    if type(size) is not int or size < 0:
        raise ValueError(f"bytes {size!r:.60}")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"sha256 {digest!r:.80}")
    return Entry(size, digest)


def _names(entry: object) -> list[str]:
    if not isinstance(entry, list) or not all(isinstance(name, str) for name in entry):
        raise ValueError(f"names {entry!r:.60}")
    return [str(name) for name in entry]
