"""What is no checkpoint is refused: manifests that lie, forged files, planted pickles, links."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest

from cmsolvers.training.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from cmsolvers.training.checkpoints.manifest import ABOUT, MANIFEST
from support.saved import bits, some_groups


def rewritten(path: Path, change) -> None:
    """Change a manifest's content and make its digest right again, as an attacker would."""
    body = json.loads((path / MANIFEST).read_text())
    body.pop("sha256")
    change(body)
    spelled = lambda b: (json.dumps(b, sort_keys=True, indent=1) + "\n").encode()  # noqa: E731
    digest = hashlib.sha256(spelled(body)).hexdigest()
    (path / MANIFEST).write_bytes(spelled(body | {"sha256": digest}))


def entry_of(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


SOUND = "network.safetensors"
CHANGES = {
    "format": lambda b: b.update(format="cmsolvers-9"),
    "no format": lambda b: b.pop("format"),
    "more keys": lambda b: b.update(more=1),
    "no files": lambda b: b.pop("files"),
    "files are a list": lambda b: b.update(files=[]),
    "files are a number": lambda b: b.update(files=3),
    "no description": lambda b: b["files"].pop(ABOUT),
    "entry is text": lambda b: b["files"].update({SOUND: "x"}),
    "entry has more": lambda b: b["files"][SOUND].update(more=1),
    "size is text": lambda b: b["files"][SOUND].update(bytes="9"),
    "size is true": lambda b: b["files"][SOUND].update(bytes=True),
    "size is negative": lambda b: b["files"][SOUND].update(bytes=-1),
    "size is a fraction": lambda b: b["files"][SOUND].update(bytes=1.5),
    "size is absurd": lambda b: b["files"][SOUND].update(bytes=45 << 40),
    "digest is a number": lambda b: b["files"][SOUND].update(sha256=1),
    "digest is short": lambda b: b["files"][SOUND].update(sha256="ab"),
    "digest in capitals": lambda b: b["files"][SOUND].update(sha256="AB" * 32),
    "a file that is not there": lambda b: b["files"].update({"x.safetensors": entry_of(b"")}),
    "a file elsewhere": lambda b: b["files"].update({"../x.safetensors": entry_of(b"")}),
    "an absolute file": lambda b: b["files"].update({"/etc/x.safetensors": entry_of(b"")}),
    "a file of another kind": lambda b: b["files"].update({"x.pt": entry_of(b"")}),
    "the manifest itself": lambda b: b["files"].update({MANIFEST: entry_of(b"")}),
    "complex is a list": lambda b: b.update(complex=[]),
    "complex names are text": lambda b: b["complex"].update(network="w"),
    "complex names are numbers": lambda b: b["complex"].update(network=[1]),
    "complex of another name": lambda b: b["complex"].update(network=["none"]),
    "complex of real numbers": lambda b: b["complex"].update(network=["layer.weight"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_manifests_of_wrong_types_and_lies_are_refused(change: str, tmp_path: Path):
    path = tmp_path / "c"
    write_checkpoint(path, some_groups(), {})
    rewritten(path, lambda body: None)
    read_checkpoint(path)  # made anew without a change it is fine
    rewritten(path, CHANGES[change])
    with pytest.raises(
        CheckpointError, match=r"path must be an undamaged checkpoint; .*safetens|json"
    ):
        read_checkpoint(path)


def header(text: bytes, size: int | None = None, tail: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text + tail


TENSOR = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
FORGED = {
    "nothing": b"",
    "a header longer than the file": header(b"{}", 1 << 40),
    "a header of the largest number": header(b"{}", (1 << 64) - 1),
    "no JSON": header(b"{nonsense"),
    "deep JSON": header(b"[" * 100_000),
    "tensors beyond the end": header(TENSOR),
    "tensors of a size that overflows": header(
        TENSOR.replace(b"[2]", b"[4611686018427387905]"), tail=b"x" * 8
    ),
    "a dtype of nobody": header(TENSOR.replace(b"F32", b"F33"), tail=b"x" * 8),
    "a pickle": pickle.dumps({"w": [1.0, 2.0]}),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_tensors_with_a_right_digest_are_refused(kind: str, tmp_path: Path):
    path, data = tmp_path / "c", FORGED[kind]
    write_checkpoint(path, some_groups(), {})
    (path / SOUND).write_bytes(data)
    rewritten(path, lambda body: body["files"].update({SOUND: entry_of(data)}))
    with pytest.raises(CheckpointError, match=r"network\.safetensors holds no tensors"):
        read_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"3", b"[]", b"{", b"\xff", b"[" * 100_000, b"NaN"])
def test_forged_descriptions_are_refused(data: bytes, tmp_path: Path):
    path = tmp_path / "c"
    write_checkpoint(path, some_groups(), {})
    (path / ABOUT).write_bytes(data)
    rewritten(path, lambda body: body["files"].update({ABOUT: entry_of(data)}))
    with pytest.raises(CheckpointError, match=r"about\.json (is no JSON|must hold)"):
        read_checkpoint(path)
    (path / MANIFEST).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"manifest\.json (is damaged|must hold)"):
        read_checkpoint(path)


class Evil:
    """Pickled, it makes a folder of a given name when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["x.pt", "x.pkl", "network.pt", "x.safetensors", "about.json.pkl"])
def test_files_that_the_manifest_does_not_list_are_left_alone(name: str, tmp_path: Path):
    """A planted pickle is never executed; a note in the folder does not cost a run its state."""
    path, mark = tmp_path / "c", tmp_path / "executed"
    write_checkpoint(path, some_groups(), {"step": 1})
    (path / name).write_bytes(pickle.dumps(Evil(mark)))
    groups, about = read_checkpoint(path)
    assert bits(groups) == bits(some_groups()) and about == {"step": 1}
    assert not mark.exists()


@pytest.mark.parametrize("name", [MANIFEST, ABOUT, SOUND])
def test_pickles_in_place_of_files_are_refused_unopened(name: str, tmp_path: Path):
    path, mark = tmp_path / "c", tmp_path / "executed"
    write_checkpoint(path, some_groups(), {})
    data = pickle.dumps(Evil(mark))
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(path)
    if name != MANIFEST:  # even where the manifest vouches for it
        rewritten(path, lambda body: body["files"].update({name: entry_of(data)}))
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(path)
    assert not mark.exists()
    pickle.loads(data)  # the negative control
    assert mark.exists()


@pytest.mark.parametrize("name", [MANIFEST, ABOUT, SOUND])
@pytest.mark.parametrize("kind", ["link", "link inside", "pipe", "folder", "dangling"])
def test_what_is_no_plain_file_is_refused(kind: str, name: str, tmp_path: Path):
    path, out = tmp_path / "c", tmp_path / "out"
    write_checkpoint(path, some_groups(), {})
    file = path / name
    (path / "copy" if kind == "link inside" else out).write_bytes(file.read_bytes())
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to({"link": out, "link inside": "copy", "dangling": "none"}[kind])
    with pytest.raises(CheckpointError, match=f"{name} must be a file; it is"):
        read_checkpoint(path)
