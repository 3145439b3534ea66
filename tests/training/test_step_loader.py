"""Worker processes: the same batches, errors that arrive, and a certain end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cmsolvers.training import data
from support import ROOT
from support.picture_files import folder


class Numbers:
    """Sample i is (i, step); what happens at a step is up to the test."""

    shape, classes, scale, fingerprint = (2,), None, None, "0" * 16

    def __init__(self, at: int = -1, act=None):
        self.at, self.act = at, act

    def __len__(self):
        return 40

    def samples(self, index, *, seed, step):
        if step == self.at:
            self.act()
        return torch.stack((index.float(), torch.full((len(index),), float(step))), 1), index % 3


def loader(source, **options):
    return data.StepLoader(source, **({"batch_size": 8, "seed": 3, "total": 12} | options))


def children() -> int:
    return len(multiprocessing.active_children())


@pytest.mark.parametrize("world", [1, 2])
def test_workers_change_nothing(tmp_path: Path, world: int):
    pytest.importorskip("PIL")
    source = data.image_folder(folder(tmp_path), 10, crop="random", flip=True)
    for rank in range(world):
        options = {"batch_size": 4, "rank": rank, "world": world}
        alone = list(loader(source, **options))
        for workers, first in ((1, 0), (2, 0), (2, 7)):
            with loader(source, workers=workers, first_step=first, **options) as batches:
                found = list(batches)
            assert [batch.step for batch in found] == list(range(first, 12))
            for batch in found:
                same = alone[batch.step]
                assert torch.equal(batch.x0, same.x0) and torch.equal(batch.labels, same.labels)
                assert torch.equal(batch.index, same.index)
                assert torch.equal(batch.key.table, same.key.table)
    assert children() == 0
    # Epochs have crops of their own: some sample is cut in two ways.
    seen: dict[int, set[bytes]] = {}
    for batch in loader(source, batch_size=4):
        for i, x in zip(batch.index.tolist(), batch.x0, strict=True):
            seen.setdefault(i, set()).add(x.numpy().tobytes())
    assert max(map(len, seen.values())) > 1


def test_workers_hand_over_what_they_read():
    with loader(Numbers(), workers=2) as batches:
        for batch in batches:
            assert torch.equal(batch.x0[:, 0].long(), batch.index)
            assert bool((batch.x0[:, 1] == batch.step).all())
            assert torch.equal(batch.labels, batch.index % 3)
            assert batch.total == 12


class _OddError(Exception):
    """Cannot be made again from its text."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def _bad():
    raise ValueError("folder/17.png is no whole picture")


def _missing():
    open("/nowhere/18.png")  # noqa: SIM115


def _odd():
    raise _OddError("this", "that")


@pytest.mark.parametrize(
    ("act", "kind", "text"),
    [
        (_bad, ValueError, r"^folder/17\.png is no whole picture$"),
        (_missing, FileNotFoundError, r"/nowhere/18\.png"),
        (_odd, ValueError, r"^_OddError: this and that$"),
    ],
)
def test_an_error_of_a_worker_arrives_as_it_was(act, kind, text):
    for workers in (2, 0):
        steps = []
        expected = _OddError if act is _odd and not workers else kind
        with pytest.raises(expected, match=text if expected is kind else "this and that"):
            for batch in loader(Numbers(7, act), workers=workers):
                steps.append(batch.step)
        assert steps == list(range(7))
        assert children() == 0


def test_workers_end_with_the_iteration():
    batches = loader(Numbers(), workers=2)
    iterator = iter(batches)
    next(iterator)
    assert children() == 2
    batches.close()
    assert children() == 0
    with pytest.raises(RuntimeError), batches:
        for _ in batches:
            raise RuntimeError("of the loop's body")
    assert children() == 0
    iterator = iter(batches)
    next(iterator)
    second = iter(batches)  # ends the first
    assert next(second).step == 0 and children() == 2
    with pytest.raises(StopIteration):
        next(iterator)
    batches.close()
    assert len(list(batches)) == 12 and children() == 0


def test_data_in_memory_need_no_workers():
    with loader(torch.zeros(40, 2), workers=2) as batches:
        next(iter(batches))
        assert children() == 0


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies():
    begin = time.monotonic()
    with pytest.raises(ChildProcessError, match="a worker that reads the data ended"):
        list(loader(Numbers(5, _die), workers=1))
    assert time.monotonic() - begin < 30
    assert children() == 0


PROGRAM = """
import os, signal, sys, time
import torch
from cmsolvers.training import data

class Slow:
    shape, classes, scale, fingerprint = (1,), None, None, ""
    def __len__(self): return 40
    def samples(self, index, *, seed, step):
        time.sleep(0.05)
        return index[:, None].float(), None

def stop(number, frame):
    global stopped
    stopped = True

stopped, mode = False, sys.argv[1]
if mode == "term":
    signal.signal(signal.SIGTERM, stop)
loader = data.StepLoader(Slow(), batch_size=4, seed=0, total=10**6, workers=2)
after = 0
for batch in loader:
    if batch.step == 3:
        import multiprocessing
        print(*(p.pid for p in multiprocessing.active_children()), flush=True)
        if mode == "exit":
            sys.exit(7)
    after += stopped
    if after == 3:
        sys.exit(9)
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("mode", "number", "status"),
    [
        ("int", signal.SIGINT, (130, -2)),  # Ctrl-C reaches every process of the terminal
        ("term", signal.SIGTERM, (9,)),  # the workers go on until the trainer stops
        ("kill", signal.SIGKILL, (-9,)),
        ("exit", None, (7,)),
    ],
)
def test_no_process_stays(mode, number, status):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    workers = [int(pid) for pid in program.stdout.readline().split()]
    assert len(workers) == 2
    if number == signal.SIGKILL:
        program.kill()
    elif number is not None:
        assert all(map(_alive, workers))
        os.killpg(program.pid, number)
    try:
        try:
            _, errors = program.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            if number != signal.SIGINT:
                raise
            os.killpg(program.pid, number)  # Python drops what arrives while it tidies up
            _, errors = program.communicate(timeout=30)
    finally:
        program.kill()
    assert program.returncode in status, errors
    deadline = time.monotonic() + 20
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, workers))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_to_the_device(workers):
    here = list(loader(Numbers()))
    with loader(Numbers(), workers=workers, device="cuda") as batches:
        for batch, same in zip(batches, here, strict=True):
            for name in ("x0", "index", "labels"):
                value = getattr(batch, name)
                assert value.is_cuda and torch.equal(value.cpu(), getattr(same, name))
            assert batch.key.table.is_cuda and torch.equal(batch.key.table.cpu(), same.key.table)
