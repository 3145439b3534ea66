"""Checkpoints as folders: every tensor comes back to the bit, what is not one is refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

from cmsolvers.training.checkpoints import (
    CheckpointError,
    disk,
    folders,
    read_checkpoint,
    replace_file,
    stored_bytes,
    write_checkpoint,
)
from cmsolvers.training.checkpoints.manifest import ABOUT, MANIFEST, Entry, Manifest
from support.faults import before_each_call, ended, forked
from support.saved import bits, content, names_in, nan_with_payload, some_groups

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.complex128, torch.complex64, torch.complex32),
]


class Sharded(torch.Tensor):
    """A part of a tensor, as distributed ones are."""


def there_and_back(tmp_path: Path, groups):
    write_checkpoint(tmp_path / "c", groups, {})
    found, _ = read_checkpoint(tmp_path / "c")
    assert found.keys() == groups.keys() and bits(found) == bits(groups)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_of_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path):
    """All patterns of 8 bits, and random ones, in several shapes."""
    raw = torch.cat([torch.arange(256), torch.randint(256, (512,))]).to(torch.uint8)
    flat = raw % 2 == 1 if dtype is torch.bool else raw.view(dtype)
    shapes = {"flat": flat, "scalar": flat[3], "square": flat[:36].reshape(6, 6)}
    shapes |= {"empty": flat[:0], "empty, of three": flat[:0].reshape(0, 4, 2)}
    found = there_and_back(tmp_path, {"a": shapes})
    found["a"]["flat"].zero_()  # the memory is the reader's own
    assert bits({"a": {"square": found["a"]["square"]}}) == bits(
        {"a": {"square": flat[:36].reshape(6, 6)}}
    )


def test_layouts_that_are_no_plain_memory_come_back(tmp_path: Path):
    whole = torch.arange(24.0).reshape(4, 6)
    z = torch.complex(whole, whole.flip(0))
    group = {
        "whole": whole,
        "part": whole[1:, ::2],
        "across": whole.T,
        "same": whole,
        "expanded": whole[:1].expand(3, 6),
        "images": whole.reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "conjugate": z.conj(),
        "negative": z.conj().imag,
        "parameter": nn.Parameter(whole),
        "computed": (nn.Parameter(whole) * 2),
        "nan": nan_with_payload(),
        'name with / and . and \n and ä and "': whole,
    }
    found = there_and_back(tmp_path, {"a": group, "empty": {}})
    assert found["a"]["conjugate"].equal(z.conj()) and found["a"]["negative"].equal(-z.imag)
    assert struct.unpack("<4I", found["a"]["nan"].numpy().tobytes())[1] == 0x7F800001


def test_other_programs_read_the_files(tmp_path: Path):
    """They are safetensors files, the manifest's digests are those of `sha256sum`."""
    groups = some_groups()
    write_checkpoint(tmp_path / "c", groups, {"step": 3, "words": ["ä", None, 1.5]})
    with safetensors.safe_open(tmp_path / "c" / "network.safetensors", "pt") as file:
        assert set(file.keys()) == set(groups["network"])
        assert torch.equal(file.get_tensor("layer.weight"), groups["network"]["layer.weight"])
    manifest = json.loads((tmp_path / "c" / MANIFEST).read_text())
    assert json.loads((tmp_path / "c" / ABOUT).read_text()) == {
        "step": 3,
        "words": ["ä", None, 1.5],
    }
    files = content(tmp_path / "c")
    assert manifest["format"] == "cmsolvers-2" and {*manifest["files"], MANIFEST} == set(files)
    for name, entry in manifest["files"].items():
        digest = hashlib.sha256(files[name]).hexdigest()
        assert entry == {"bytes": len(files[name]), "sha256": digest}
    assert sum(map(len, files.values())) <= stored_bytes(groups)


def test_the_same_state_has_the_same_bytes(tmp_path: Path):
    turned = {g: dict(reversed(m.items())) for g, m in reversed(some_groups().items())}
    for name, groups in (("a", some_groups()), ("b", turned), ("c", some_groups(1))):
        write_checkpoint(tmp_path / name, groups, {"b": 1, "a": 2})
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")


def test_only_what_is_asked_for_is_read(tmp_path: Path):
    """So a model can be passed on without its optimiser."""
    write_checkpoint(tmp_path / "c", some_groups(), {"step": 1})
    (tmp_path / "c" / "optimizer.safetensors").unlink()
    groups, about = read_checkpoint(tmp_path / "c", ["average.ema"])
    assert bits(groups) == bits({"average.ema": some_groups()["average.ema"]})
    assert about == {"step": 1}
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is missing"):
        read_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"no group 'other'; there are \['average.ema', 'net"):
        read_checkpoint(tmp_path / "c", ["other"])


def test_files_are_on_the_disk_before_the_folder_has_its_name(tmp_path: Path):
    """The order that a loss of power cannot turn around; the manifest is the last file."""
    calls, names = [], {}

    def hook(name, args):
        if name == "open":
            names[len(calls)] = Path(args[0]).name
        calls.append((name, args))

    with before_each_call(hook):
        write_checkpoint(tmp_path / "c", some_groups(), {})
    story = [name for name, _ in calls if name in ("open", "fsync", "rename")]
    files = 3 + 2
    folder, parent = ["open", "fsync"], ["open", "fsync"]
    assert story == ["open", "fsync"] * files + folder + ["rename"] + parent
    opened = list(names.values())
    assert opened[files - 1] == MANIFEST and opened[-1] == tmp_path.name


# --- what cannot be written ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "error", "text"),
    [
        ({"a/b": {}}, ValueError, "group names must not contain"),
        ({"../a": {}}, ValueError, "group names must not contain"),
        ({".a": {}}, ValueError, "group names must not contain"),
        ({"": {}}, ValueError, "group names must not contain"),
        ({"a" * 101: {}}, ValueError, "group names must not contain"),
        ({"a": {"__metadata__": torch.ones(1)}}, ValueError, "names of tensors must be text"),
        ({"a": {"\ud800": torch.ones(1)}}, ValueError, "names of tensors must be text"),
        ({"a": {"w": 1.0}}, TypeError, "a/w must be a tensor; got an object of type float"),
        ({"a": {"w": torch.ones(2, 2).to_sparse()}}, TypeError, "a/w must be a plain strided"),
        ({"a": {"w": torch.ones(2, device="meta")}}, ValueError, "a/w must be on a device"),
        ({"a": {"w": torch.ones(2).as_subclass(Sharded)}}, TypeError, "got a Sharded: gather"),
        (
            {"a": {"w": torch.ones(2).to(torch.float8_e4m3fnuz)}},
            TypeError,
            "a/w must be of a dtype",
        ),
    ],
)
def test_what_cannot_be_stored_is_named_before_anything_is_written(groups, error, text, tmp_path):
    path = tmp_path / "c"
    write_checkpoint(path, some_groups(), {"step": 1})
    before = content(path)
    with pytest.raises(error, match=text):
        write_checkpoint(path, groups, {})
    with pytest.raises(TypeError, match="JSON"):
        write_checkpoint(path, {}, {"step": torch.ones(2)})
    assert content(path) == before and os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("there", ["file", "notes", "folder"])
def test_nothing_but_a_checkpoint_is_replaced(there: str, tmp_path: Path):
    path = tmp_path / "c"
    if there == "file":
        path.write_text("old")
    else:
        write_checkpoint(path, some_groups(), {})
        (path / "notes").mkdir() if there == "folder" else (path / "notes").write_text("mine")
    before = names_in(tmp_path)
    with pytest.raises(FileExistsError, match="path must be free or a checkpoint"):
        write_checkpoint(path, some_groups(1), {})
    assert names_in(tmp_path) == before


def test_a_place_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"must exist.*none"):
        write_checkpoint(tmp_path / "none" / "c", {}, {})
    with pytest.raises(FileNotFoundError, match=r"there is none.*none"):
        read_checkpoint(tmp_path / "none")


def test_a_link_to_a_folder_elsewhere_stays_one(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "c").symlink_to(tmp_path / "disk" / "real")
    for seed in (0, 1):
        write_checkpoint(tmp_path / "c", some_groups(seed), {})
        assert bits(read_checkpoint(tmp_path / "c")[0]) == bits(some_groups(seed))
    assert (tmp_path / "c").is_symlink() and os.listdir(tmp_path / "disk") == ["real"]


# --- while others read and write ----------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False], ids=["one act", "two renames"])
def test_a_reader_sees_one_state_or_the_next_while_it_is_replaced(exchange, tmp_path, monkeypatch):
    path = tmp_path / "c"
    write_checkpoint(path, some_groups(0), {"seed": 0})
    if not exchange:
        monkeypatch.setattr(disk, "_exchange", lambda *_: False)

    def write() -> None:
        for seed in range(1, 40):
            write_checkpoint(path, some_groups(seed), {"seed": seed})

    child, seen = forked(write), set()
    while not os.waitpid(child, os.WNOHANG)[0]:
        groups, about = read_checkpoint(path)
        assert bits(groups) == bits(some_groups(int(str(about["seed"]))))
        seen.add(about["seed"])
    assert len(seen) > 3 and read_checkpoint(path)[1]["seed"] == 39


def test_folders_that_are_replaced_all_the_time_are_given_up(tmp_path: Path, monkeypatch):
    path = tmp_path / "c"
    write_checkpoint(path, some_groups(), {})

    def replaced(folder, only):
        write_checkpoint(path, some_groups(), {})
        raise CheckpointError("network.safetensors is missing")

    monkeypatch.setattr(folders, "_read", replaced)
    with pytest.raises(CheckpointError, match="must stay while it is read"):
        read_checkpoint(path)


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path):
    path = tmp_path / "c"
    names = {}

    def leave() -> None:
        (disk.name_beside(path, "partial") / "half").mkdir(parents=True)

    ended(forked(leave))
    (dead,) = os.listdir(tmp_path)
    living = disk.name_beside(path, "partial")
    living.mkdir()
    elsewhere = tmp_path / dead.replace(disk._machine(), "0" * 8)
    elsewhere.mkdir()
    names = {".c.partial", ".c.partial-1-2", "c.partial-00000000-1-00000000", ".d" + dead[2:]}
    for name in names:
        (tmp_path / name).mkdir()
    write_checkpoint(path, some_groups(), {})
    assert set(os.listdir(tmp_path)) == {"c", living.name, elsewhere.name, *names}


def test_a_small_file_is_replaced_in_one_act(tmp_path: Path):
    path = tmp_path / "config.toml"
    replace_file(path, "a = 1\n")
    replace_file(path, "ä = 2\n")
    assert path.read_text("utf-8") == "ä = 2\n" and os.listdir(tmp_path) == [path.name]
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "none" / "x", b"")


def test_a_manifest_has_one_spelling():
    manifest = Manifest({ABOUT: Entry(3, "ab" * 32)}, {"a": ["w"]})
    text = manifest.text()
    assert Manifest.read(text) == manifest
    for other in (text + b" ", text.replace(b": ", b":"), text.replace(b"ab", b"\\u0061b", 1)):
        with pytest.raises(CheckpointError, match="is damaged"):
            Manifest.read(other)
