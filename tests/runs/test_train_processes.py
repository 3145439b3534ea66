"""`python -m cmsolvers train` in processes of its own: signals, several of them, other folders."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cmsolvers
from cmsolvers import cli
from cmsolvers.runs.config import template
from cmsolvers.training import RunFolder, read_checkpoint

COMMAND = ("-m", "cmsolvers", "train")
TINY = ["network.options.width=16", "network.options.blocks=1", "train.batch_size=16"]
ROOT = Path(cmsolvers.__file__).parents[1]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def written(place, *overrides):
    path = place / "digits.toml"
    path.write_text(template("digits-score"), encoding="utf-8")
    return [str(path), *TINY, *overrides]


def newest(out):
    return read_checkpoint(RunFolder(out).checkpoints()[-1])


@pytest.fixture
def started():
    """Starts commands, and ends those that are left at the end of the test."""
    running = []

    def start(place, *words, program=(sys.executable, *COMMAND)):
        process = subprocess.Popen(
            [*program, *words],
            cwd=place,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(path, process, seconds=120):
    """Until a file has more than its head."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and len(path.read_text().splitlines()) > 3:
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"the run did not begin: {process.communicate()}")


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, started, number, status, capfd):
    """From a working folder that has nothing to do with the code."""
    words = written(tmp_path, "logging.every=1", "logging.progress=false", "train.steps=100000")
    process = started(tmp_path, *words)
    wait_for(tmp_path / "digits-score" / "log.csv", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    step = int(re.search(r"at step ([\d,]+); checkpoint", out)[1].replace(",", ""))
    assert "the same command goes on" in out
    groups, about = newest(tmp_path / "digits-score")
    assert about["step"] == step == len(groups["progress"]["history"]) > 0
    assert not (tmp_path / "digits-score" / "lock").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert cli.main(["train", *words, f"train.steps={step + 2}"]) == 0
    assert f"goes on from step {step:,}" in capfd.readouterr().out
    assert newest(tmp_path / "digits-score")[1]["step"] == step + 2


def test_two_processes_are_one_run(tmp_path, started, capfd):
    """The losses of one process within rounding; one log, one folder, everything told once."""
    pytest.importorskip("accelerate")
    words = written(tmp_path, "train.steps=6", "logging.every=1", "logging.progress=false")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = started(tmp_path, *words, "run.out=two", program=(*torchrun, *COMMAND))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("6 steps; loss") == 1 and out.count("2 processes") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert cli.main(["train", *words, "run.out=one"]) == 0
        two, one = newest("two")[0], newest("one")[0]
        torch.testing.assert_close(
            two["progress"]["history"], one["progress"]["history"], rtol=1e-5, atol=0
        )
        for name, value in one["network"].items():
            torch.testing.assert_close(two["network"][name], value, rtol=1e-3, atol=1e-5)
        rows = [(tmp_path / out / "log.csv").read_text().splitlines() for out in ("one", "two")]
        assert [row.split(",")[0] for row in rows[0]] == [row.split(",")[0] for row in rows[1]]
        # One process goes on with what two have begun.
        assert cli.main(["train", *words, "run.out=two", "train.steps=7"]) == 0
        assert newest("two")[1]["step"] == 7


@pytest.mark.slow
def test_what_does_not_fit_is_told_once_by_two_processes(tmp_path, started):
    pytest.importorskip("accelerate")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    words = written(tmp_path, "train.steps=6", "loss.options.cc=1")
    process = started(tmp_path, *words, program=(*torchrun, *COMMAND))
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert err.count("loss dsm has no option 'cc'") == 1
    assert not (tmp_path / "digits-score").exists()
