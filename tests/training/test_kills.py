"""Processes killed at any instant, disks that fill up: a whole checkpoint is always there."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmsolvers.training.checkpoints import (
    RunFolder,
    disk,
    read_checkpoint,
    replace_file,
    write_checkpoint,
)
from support.faults import Failing, before_each_call, ended, forked, killed_at_call
from support.saved import bits, content, names_in, some_groups

Write = Callable[[Path], object]


EVERY = [9, pytest.param(1, marks=pytest.mark.faults)]
"""The short form looks at every ninth system call."""


def two_renames(_one: Path, _other: Path) -> bool:
    """A file system that cannot exchange two names."""
    return False


def save(path: Path, step: int, size: int = 40) -> None:
    RunFolder(path, keep=2).save(step, some_groups(step, size), {})


def begun(path: Path) -> Path:
    for step in (1, 2):
        save(path, step)
    return path


def check_whole(path: Path, *steps: int) -> int:
    """The newest checkpoint is that of one of these steps, and after `locked` all else is gone."""
    run = RunFolder(path, keep=2)
    found = run.newest()
    assert found is not None and found.step in steps and found.skipped == []
    assert bits(found.groups) == bits(some_groups(found.step))
    with run.locked():
        places = run.checkpoints()
        for place in places:
            groups, _ = read_checkpoint(place)
            assert bits(groups) == bits(some_groups(int(place.name[5:])))
    left = {"checkpoints", *(f"checkpoints/{place.name}" for place in places)}
    assert {n for n in names_in(path) if n.count("/") < 2} == left
    again = run.newest()
    assert again is not None and again.step == found.step
    return found.step


WRITES: dict[str, Write] = {
    "a new step": lambda path: save(path, 3),
    "the same step": lambda path: save(path, 2),
    "under the lock": lambda path: locked_save(path, 3),
}


def locked_save(path: Path, step: int) -> None:
    with RunFolder(path).locked():
        save(path, step)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("exchange", [True, False], ids=["one act", "two renames"])
@pytest.mark.parametrize("write", WRITES)
def test_killed_before_each_system_call(
    write: str, exchange: bool, every: int, tmp_path: Path, monkeypatch
):
    if not exchange:
        monkeypatch.setattr(disk, "_exchange", two_renames)
    original, path, steps = begun(tmp_path / "original"), tmp_path / "run", set()
    for number in itertools.count(1, every):
        shutil.copytree(original, path)
        killed = killed_at_call(lambda: WRITES[write](path), number)
        steps.add(check_whole(path, 2, 3))
        shutil.rmtree(path)
        if not killed:
            break
    assert number > 20
    assert steps == ({2} if write == "the same step" else {2, 3})


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("first", [4, 14, 17, 20])
def test_killed_while_it_tidies_up_after_a_kill(
    first: int, every: int, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(disk, "_exchange", two_renames)
    original, path = begun(tmp_path / "original"), tmp_path / "run"
    assert killed_at_call(lambda: save(original, 2), first)
    for number in itertools.count(1, every):
        shutil.copytree(original, path)
        killed = killed_at_call(lambda: locked_save(path, 3), number)
        check_whole(path, 2, 3)
        shutil.rmtree(path)
        if not killed:
            break
    assert number > 20


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("exchange", [True, False], ids=["one act", "two renames"])
def test_a_plain_checkpoint_killed_before_each_call(
    exchange: bool, every: int, tmp_path: Path, monkeypatch
):
    """Without a run's folder: the next write removes what the killed one left."""
    if not exchange:
        monkeypatch.setattr(disk, "_exchange", two_renames)
    path = tmp_path / "a" / "c"
    for number in itertools.count(1, every):
        path.parent.mkdir()
        write_checkpoint(path, some_groups(1), {"seed": 1})
        killed = killed_at_call(lambda: write_checkpoint(path, some_groups(2), {"seed": 2}), number)
        groups, about = read_checkpoint(path)
        assert bits(groups) == bits(some_groups(int(str(about["seed"]))))
        write_checkpoint(path, some_groups(3), {"seed": 3})
        assert read_checkpoint(path)[1] == {"seed": 3}
        assert os.listdir(path.parent) == ["c"]
        shutil.rmtree(path.parent)
        if not killed:
            break
    assert number > 20 and about == {"seed": 2}


def test_a_small_file_killed_before_each_call(tmp_path: Path):
    path = tmp_path / "config.toml"
    for number in itertools.count(1):
        replace_file(path, "old")
        killed = killed_at_call(lambda: replace_file(path, "new"), number)
        assert path.read_text() in ("old", "new")
        if not killed:
            break
    assert number > 4 and path.read_text() == "new"


# --- at random instants -------------------------------------------------------------------------


def check_random_kills(path: Path, kills: int, size: int) -> tuple[int, int]:
    """Kill a writer `kills` times; (checkpoints it reported, leftovers that were found)."""

    def step_twice(step: int) -> None:
        for _ in range(2):  # as the end of a run does, which writes its last step again
            RunFolder(path, keep=2).save(step, some_groups(step, size), {})

    start = time.perf_counter()
    step_twice(0)
    pace = time.perf_counter() - start
    chance, reported, leftovers, last = random.Random(kills), 0, 0, 0
    for _ in range(kills):
        out, into = os.pipe()

        def work(first: int = last + 1, into: int = into) -> None:
            with RunFolder(path, keep=2).locked():
                for step in itertools.count(first):
                    step_twice(step)
                    os.write(into, b"%d\n" % step)

        child = forked(work)
        os.close(into)
        time.sleep(chance.uniform(0.0, 4.0 * pace))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        with open(out, "rb") as pipe:
            told = [int(line) for line in pipe.read().splitlines()]
        reported += len(told)
        leftovers += sum(name.startswith(".") for name in os.listdir(path / "checkpoints"))
        run = RunFolder(path, keep=2)
        found = run.newest()
        assert found is not None and found.step >= max([last, *told]) and found.skipped == []
        assert bits(found.groups) == bits(some_groups(found.step, size))
        with run.locked():
            names = os.listdir(path / "checkpoints")
            assert all(name.startswith("step-") for name in names)
            assert sorted(os.listdir(path)) == ["checkpoints", "lock"]
        last = found.step
    step_twice(last + 1)
    assert len(os.listdir(path / "checkpoints")) == 2
    return reported, leftovers


def test_killed_at_random_instants(tmp_path: Path):
    check_random_kills(tmp_path / "run", 8, 40)


@pytest.mark.faults
@pytest.mark.parametrize("exchange", [True, False], ids=["one act", "two renames"])
@pytest.mark.parametrize("size", [40, 1_000_000])
def test_killed_at_many_random_instants(size: int, exchange: bool, tmp_path: Path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(disk, "_exchange", two_renames)
    reported, leftovers = check_random_kills(tmp_path / "run", 50, size)
    assert leftovers > 5 < reported  # else the kills fell between the writes
    print(
        f"SIGKILL at 50 random instants, {size} values, exchange {exchange}: 50 of 50 left the "
        f"newest checkpoint whole; {reported} reported, {leftovers} leftovers removed"
    )


# --- disks that do not take it ------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device")
OTHERS = [
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EROFS, "Read-only file system"),
    KeyboardInterrupt(),
]
ERRORS = [FULL, *(pytest.param(error, marks=pytest.mark.faults) for error in OTHERS)]


@pytest.mark.parametrize("exchange", [True, False], ids=["one act", "two renames"])
@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_each_call_may_fail(error: BaseException, step: int, exchange: bool, tmp_path, monkeypatch):
    """The checkpoint before stays to the byte, or the new one is whole; nothing else is left."""
    if not exchange:
        monkeypatch.setattr(disk, "_exchange", two_renames)
    original, path, raised = begun(tmp_path / "original"), tmp_path / "run", 0
    before = content(original / "checkpoints" / "step-00000002")
    for number in itertools.count(1):
        shutil.copytree(original, path)
        failing = Failing(number, error)
        with before_each_call(failing), pytest.MonkeyPatch.context() as quiet:
            quiet.setattr("warnings.warn", lambda *_, **__: None)
            try:
                save(path, step)
            except type(error):
                raised += 1
        names = os.listdir(path / "checkpoints")
        assert content(path / "checkpoints" / "step-00000002").keys() == before.keys()
        if "step-00000003" not in names:
            assert content(path / "checkpoints" / "step-00000002") == before
        assert not [name for name in names if name.startswith(".")], number
        check_whole(path, 2, step)
        shutil.rmtree(path)
        if not failing.happened:
            break
    assert raised > 15


def test_files_that_may_not_grow(tmp_path: Path):
    """A real limit: the system refuses to write beyond it."""
    path = begun(tmp_path / "run")
    before = content(path / "checkpoints" / "step-00000002")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(OSError, match=r"File too large.*network\.safetensors"):
            save(path, 3, size=100_000)

    assert ended(forked(limited)) == 0
    assert content(path / "checkpoints" / "step-00000002") == before
    check_whole(path, 2)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one megabyte, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.getuid() or shutil.which("mount") is None or subprocess.run(mount).returncode:
        pytest.skip("cannot mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path):
    path = begun(small_disk / "run")
    run = RunFolder(path, keep=2)
    run.probe(100_000)
    with pytest.raises(OSError, match=r"must have room for 1 checkpoints, 10\.0 MB") as error:
        run.probe(10_000_000)
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left") as error:
        save(path, 3, size=1_000_000)
    assert error.value.errno == errno.ENOSPC
    check_whole(path, 2)
    save(path, 4)  # the room is free again
    check_whole(path, 4)


def test_a_read_only_disk(small_disk: Path):
    path = begun(small_disk / "run")
    before = names_in(path)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run = RunFolder(path)
    for attempt in (lambda: run.probe(0), lambda: save(path, 3), lambda: locked_save(path, 3)):
        with pytest.raises(OSError, match="Read-only file system"):
            attempt()
    found = run.newest()  # reading needs no permission to write
    assert found is not None and found.step == 2 and names_in(path) == before


def test_a_folder_that_may_not_be_written(tmp_path: Path):
    path = begun(tmp_path / "run")
    for folder in (path, path / "checkpoints"):
        folder.chmod(0o555)
    before = names_in(path)

    def without_rights() -> None:
        if os.getuid() == 0:
            for above in path.parents:
                if not os.stat(above).st_mode & 0o001 and above.stat().st_uid == 0:
                    above.chmod(0o755)
            os.setuid(65534)
        run = RunFolder(path)
        for attempt in (lambda: run.probe(0), lambda: save(path, 3), lambda: locked_save(path, 3)):
            with pytest.raises(PermissionError, match="Permission denied"):
                attempt()
        found = run.newest()
        assert found is not None and found.step == 2

    assert ended(forked(without_rights)) == 0
    assert names_in(path) == before
    for folder in (path, path / "checkpoints"):
        folder.chmod(0o755)
