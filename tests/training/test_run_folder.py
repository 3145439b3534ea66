"""A run's folder: which checkpoints stay, who may train there, what is known before the start."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cmsolvers.training.checkpoints import (
    CheckpointError,
    FolderInUseError,
    RunFolder,
    disk,
    run_folder,
    stored_bytes,
)
from cmsolvers.training.checkpoints.lock import lock
from support.faults import ended, forked
from support.saved import bits, names_in, some_groups


def saved(path: Path, steps, keep: int = 3) -> RunFolder:
    run = RunFolder(path, keep=keep)
    for step in steps:
        assert run.save(step, some_groups(step), {"a": 1}).name == f"step-{step:08d}"
    return run


def steps_of(run: RunFolder) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in run.checkpoints()]


def spoil(path: Path) -> None:
    with open(path / "network.safetensors", "r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 8)


# --- which stay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_newest_are_kept(keep: int, tmp_path: Path):
    steps = [0, 7, 50, 900, 10**8, 10**9]
    run = saved(tmp_path / "run", steps, keep)
    assert steps_of(run) == steps[-keep:]
    found = run.newest()
    assert found is not None and (found.step, found.skipped) == (10**9, [])
    assert found.about == {"a": 1, "step": 10**9} and found.path == run.checkpoints()[-1]
    assert bits(found.groups) == bits(some_groups(10**9))
    some = run.newest(["average.ema"])
    assert some is not None and set(some.groups) == {"average.ema"}


def test_damaged_ones_do_not_count(tmp_path: Path):
    """Else damage would push the last good one out. They go with what is older than `keep`."""
    run = saved(tmp_path / "run", [1, 2, 3])
    spoil(run.checkpoints()[1])
    spoil(run.checkpoints()[2])
    run.save(4, some_groups(4), {})
    assert steps_of(run) == [1, 2, 3, 4]
    run.save(5, some_groups(5), {})
    assert steps_of(run) == [1, 2, 3, 4, 5]
    run.save(6, some_groups(6), {})
    assert steps_of(run) == [4, 5, 6]


def test_without_the_check_damage_would_push_the_good_one_out(tmp_path: Path, monkeypatch):
    """The negative control."""
    run = saved(tmp_path / "run", [1, 2, 3])
    for place in run.checkpoints()[1:]:
        spoil(place)
    monkeypatch.setattr(RunFolder, "_is_valid", lambda self, place: True)
    run.save(4, some_groups(4), {})
    assert steps_of(run) == [2, 3, 4]


def test_those_that_did_not_change_are_read_once(tmp_path: Path, monkeypatch):
    read, original = [], run_folder.read_checkpoint
    monkeypatch.setattr(
        run_folder, "read_checkpoint", lambda p, o=None: (read.append(p.name), original(p, o))[1]
    )
    saved(tmp_path / "run", [1, 2, 3])
    assert read == []  # this process wrote them
    run = saved(tmp_path / "run", [4, 5])
    assert read == ["step-00000003", "step-00000002"]
    os.utime(run.checkpoints()[-2] / "network.safetensors")
    run.save(6, some_groups(6), {})
    assert read[2:] == ["step-00000004"]


def test_the_one_just_written_stays_whatever_its_step(tmp_path: Path):
    run = saved(tmp_path / "run", [100, 200, 300], keep=2)
    run.save(5, some_groups(5), {})
    assert steps_of(run) == [5, 200, 300]


def test_a_write_that_fails_removes_nothing(tmp_path: Path, monkeypatch):
    run = saved(tmp_path / "run", [1, 2, 3])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        run.save(4, some_groups(4), {})
    assert steps_of(run) == [1, 2, 3]


def test_what_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch):
    run = saved(tmp_path / "run", [1, 2, 3])
    monkeypatch.setattr(disk, "name_beside", lambda place, kind: tmp_path / "none" / kind)
    monkeypatch.setattr(run_folder, "write_checkpoint", lambda place, *_: place.mkdir())
    with pytest.warns(UserWarning, match="old checkpoints could not be removed"):
        run.save(4, some_groups(4), {})
    assert 4 in steps_of(run)


def test_names_of_others_are_left_alone(tmp_path: Path):
    run = saved(tmp_path / "run", [1, 2])
    for name in ("step-3", "step-00000003.old", "my step-00000003", "notes"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
    before = set(names_in(tmp_path))
    with run.locked():
        assert steps_of(run) == [1, 2]
    assert set(names_in(tmp_path)) == before


def test_a_checkpoint_under_another_steps_name_is_refused(tmp_path: Path):
    run = saved(tmp_path / "run", [1, 2])
    run.checkpoints()[0].rename(run.path / "checkpoints" / "step-00000009")
    found = run.newest()
    assert found is not None and found.step == 2
    assert "step-00000009 must be of its step; it is of step 1" in found.skipped[0]


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None])
def test_bad_counts_are_refused(bad, tmp_path: Path):
    with pytest.raises((ValueError, TypeError), match="keep must be"):
        RunFolder(tmp_path, keep=bad)
    run = RunFolder(tmp_path)
    if bad != 0:
        with pytest.raises((ValueError, TypeError), match="step must be"):
            run.save(bad, {}, {})
        with pytest.raises((ValueError, TypeError), match="bytes_needed must be"):
            run.probe(bad)
    assert names_in(tmp_path) == []


def test_a_reader_follows_a_trainer_that_keeps_one(tmp_path: Path):
    path = tmp_path / "run"
    saved(path, [0], keep=1)
    child, seen = forked(lambda: saved(path, range(1, 60), keep=1)), set()
    while not os.waitpid(child, os.WNOHANG)[0]:
        found = RunFolder(path).newest()
        assert found is not None and bits(found.groups) == bits(some_groups(found.step))
        seen.add(found.step)
    assert len(seen) > 3


# --- before the first step ----------------------------------------------------------------------


def test_room_for_all_that_will_be_kept_is_asked_for(tmp_path: Path, monkeypatch):
    groups = some_groups()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4000))
    run = RunFolder(tmp_path / "run", keep=3)
    run.probe(1000)
    assert names_in(tmp_path / "run") == ["checkpoints"]
    with pytest.raises(OSError, match=r"room for 4 checkpoints, 0\.0 MB; 0\.0 MB are free.*run"):
        run.probe(1001)
    for step in (1, 2, 3):
        run.save(step, groups, {})
    run.probe(4000)
    with pytest.raises(OSError, match="room for 1 checkpoints"):
        run.probe(4001)


def test_a_path_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    for attempt in (
        lambda r: r.probe(0),
        lambda r: r.save(1, {}, {}),
        lambda r: r.locked().__enter__(),
    ):
        with pytest.raises(OSError, match="run"):
            attempt(RunFolder(tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "mine"


def test_the_size_of_a_checkpoint_is_known_before_it_is_written(tmp_path: Path):
    for size in (3, 100_000):
        place = RunFolder(tmp_path / str(size)).save(1, some_groups(0, size), {})
        written = sum(file.stat().st_size for file in place.iterdir())
        assert written <= stored_bytes(some_groups(0, size)) <= written + 30_000


# --- the lock -----------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(FolderInUseError) as error, RunFolder(path).locked():
        pass
    return str(error.value)


def test_a_second_trainer_is_told_who_is_at_work(tmp_path: Path):
    path = tmp_path / "run"
    with RunFolder(path).locked():
        text = f"{path}; it is in use by process {os.getpid()} on {socket.gethostname()}"
        assert refused(path).endswith(text)
        assert ended(forked(lambda: refused(path))) == 0
        assert issubclass(FolderInUseError, ValueError)  # a command line shows it as one line
    with RunFolder(path).locked():
        assert json.loads((path / "lock").read_text())["pid"] == os.getpid()
    assert names_in(path) == []


def test_another_program_is_refused(tmp_path: Path):
    """One that knows nothing of this library."""
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1])\n"
        "try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: print(file.read())"
    )
    with RunFolder(tmp_path).locked():
        command = [sys.executable, "-c", program, str(tmp_path / "lock")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {"pid": os.getpid(), "host": socket.gethostname()}


def holder(path: Path, then) -> int:
    """The process id of a child that holds the lock."""
    out, into = os.pipe()

    def hold() -> None:
        with RunFolder(path).locked():
            then(into)
            signal.pause()

    child = forked(hold)
    os.close(into)
    with open(out, "rb") as pipe:
        assert pipe.readline() == b"held\n"
    return child


def test_a_lock_ends_with_its_holder_however_it_dies(tmp_path: Path):
    child = holder(tmp_path, lambda into: os.write(into, b"held\n"))
    assert f"process {child} on" in refused(tmp_path)
    os.kill(child, signal.SIGKILL)
    ended(child)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == child  # left by the dead
    with RunFolder(tmp_path).locked():
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("kind", ["fork", "program"])
def test_children_that_outlive_the_holder_do_not_keep_its_lock(kind: str, tmp_path: Path):
    """As the workers of a data loader do for a while."""
    tell = tmp_path / "child"

    def have_a_child(into: int) -> None:
        if kind == "fork":
            child = forked(lambda: time.sleep(60))
        else:
            child = subprocess.Popen(["sleep", "60"], close_fds=False).pid
        tell.write_text(str(child))
        os.write(into, b"held\n")

    path = tmp_path / "run"
    parent = holder(path, have_a_child)
    assert f"process {parent} on" in refused(path)
    os.kill(parent, signal.SIGKILL)
    ended(parent)
    child = int(tell.read_text())
    os.kill(child, 0)  # it lives
    with RunFolder(path).locked():
        pass
    os.kill(child, signal.SIGKILL)


def test_a_child_that_leaves_the_block_does_not_end_the_lock(tmp_path: Path):
    def leave() -> None:
        context.__exit__(None, None, None)

    context = RunFolder(tmp_path).locked()
    context.__enter__()
    assert ended(forked(leave)) == 0
    assert (tmp_path / "lock").exists() and "in use by process" in refused(tmp_path)
    context.__exit__(None, None, None)
    assert not (tmp_path / "lock").exists()


def test_never_two_at_a_time(tmp_path: Path):
    """Four processes count to 25 each in one file, which only a lock makes 100."""
    (tmp_path / "n").write_text("0")

    def count() -> None:
        done = 0
        while done < 25:
            try:
                with lock(tmp_path / "lock"):
                    number = int((tmp_path / "n").read_text())
                    time.sleep(0.0005)
                    (tmp_path / "n").write_text(str(number + 1))
                    done += 1
            except FolderInUseError:
                time.sleep(0.0002)

    children = [forked(count) for _ in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    assert (tmp_path / "n").read_text() == "100"


def test_a_lock_that_someone_removed_does_not_cost_the_next_one_his(tmp_path: Path):
    path = tmp_path / "lock"
    with lock(path):
        path.unlink()
        with lock(path):
            pass
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_file_systems_without_locks_are_a_warning(tmp_path: Path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.warns(UserWarning, match="has no locks"), RunFolder(tmp_path / "run").locked():
        pass
    assert names_in(tmp_path / "run") == []


def test_only_the_first_rank_takes_the_lock(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with RunFolder(tmp_path / "run").locked():
        assert not (tmp_path / "run").exists()
        monkeypatch.setenv("RANK", "0")
        with RunFolder(tmp_path / "run").locked():
            assert (tmp_path / "run" / "lock").exists()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    with RunFolder(tmp_path / "other").locked():  # the group knows better than the environment
        assert not (tmp_path / "other").exists()


def test_leftovers_go_once_the_lock_is_held(tmp_path: Path):
    run = saved(tmp_path / "run", [1])
    places = [run.path / "config.toml", *run.checkpoints()]
    for place in places:
        disk.name_beside(place, "partial").mkdir()
        disk.name_beside(place, "removed").write_text("x")
    run.checkpoints()[0].rename(disk.name_aside(run.checkpoints()[0]))
    assert steps_of(run) == [1]
    found = run.newest()
    assert found is not None and found.step == 1
    with run.locked():
        assert sorted(os.listdir(run.path)) == ["checkpoints", "lock"]
        assert os.listdir(run.path / "checkpoints") == ["step-00000001"]
    again = run.newest()
    assert again is not None and bits(again.groups) == bits(some_groups(1))


def test_damage_of_all_is_no_new_start(tmp_path: Path):
    run = saved(tmp_path / "run", [1])
    spoil(run.checkpoints()[0])
    with pytest.raises(CheckpointError, match="must hold an undamaged checkpoint"):
        run.newest()


def test_whoever_holds_a_folder_may_hand_it_to_a_trainer(tmp_path):
    """The same object is locked again within its block, and stays locked after that."""
    held, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with held.locked():
        for _ in range(2):
            with held.locked():
                pass
            with pytest.raises(FolderInUseError), other.locked():
                pass
    with other.locked():
        pass
