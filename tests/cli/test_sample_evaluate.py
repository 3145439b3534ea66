"""`cmsolvers sample` and `evaluate` as they are typed: options, errors in one line, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cmsolvers import cli
from cmsolvers.runs import evaluate, sample
from support.sampled_models import NETWORK, checkpoint


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("score") / "checkpoint", classes=10)


def typed(*words: object) -> int:
    return cli.main([str(word) for word in words])


def test_options_of_sample_reach_the_settings(monkeypatch, tmp_path):
    asked = []

    def record(settings, out, **given):
        asked.append((settings, out, given))
        raise ValueError("seen")

    monkeypatch.setattr(sample, "sample", record)
    words = "--sampler unipc --steps 7 --num 9 --seed 5 --batch 3 --classes 3,5 --guidance 1.5"
    more = "--device cpu --precision bf16 --format npz --average fast --schedule vp order=2"
    assert typed("sample", "c", *words.split(), *more.split(), "--out", tmp_path, "--quiet") == 2
    assert typed("sample", "c", "eta=0.5", "--levels", 3, 1.5) == 2
    (first, out, given), (second, usual, _) = asked
    assert first == sample.SampleSettings(
        Path("c"),
        9,
        5,
        "unipc",
        7,
        None,
        "vp",
        {"order": 2},
        3,
        "3,5",
        1.5,
        "cpu",
        "bf16",
        "npz",
        "fast",
        [],
    )
    assert out == tmp_path and given["progress"] is False
    assert second == sample.SampleSettings(
        Path("c"), levels=[3.0, 1.5], options={"eta": 0.5}, trusted=[]
    )
    assert usual == Path("sample-output")


def test_options_of_evaluate_reach_the_settings(monkeypatch, tmp_path):
    asked = []

    def record(settings, out, **given):
        asked.append(settings)
        raise ValueError("seen")

    monkeypatch.setattr(evaluate, "evaluate", record)
    words = "--data d --held h --features inception --weights w --classifier k --num 9 --batch 3"
    more = ("--device", "cpu", "--seed", 4, "size=32", "channels=1")
    assert typed("evaluate", "s", *words.split(), *more) == 2
    assert asked[0] == evaluate.EvaluationSettings(
        Path("s"),
        "d",
        "h",
        {"size": 32, "channels": 1},
        "inception",
        Path("w"),
        Path("k"),
        9,
        3,
        "cpu",
        4,
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--num", 10**13], "num must fit on the disk: 10,000,000,000,000 samples take about"),
        (["--num", 10**18], "num must be below 2^56"),
        (["--num", 0], "num must be at least 1; got 0"),
        (["--num", -3], "num must be at least 1; got -3"),
        (["--batch", 0], "batch must be at least 1; got 0"),
        (["--seed", -1], "seed must"),
        (["--steps", 0], "steps must be at least 1"),
        (["--sampler", ""], "sampler must be one of"),
        (["--sampler", "huen"], "did you mean 'heun'"),
        (["--sampler", "consistency"], "sampler must fit the model"),
        (["--sampler", "rk_pf_ode", "--steps", 5], "steps must be left out"),
        (["--schedule", "karas"], "did you mean 'karras'"),
        (["--schedule", "flow"], "schedule must be another one than 'flow'"),
        (["--levels", 1, 2], "levels must be strictly descending"),
        (["--levels", 2, 1, "--steps", 3], "levels must be given without steps"),
        (["s_churm=1"], "did you mean 's_churn'"),
        (["s_churn=many"], "s_churn must be a number"),
        (["s_churn"], "options must be name=value"),
        (["seed=4"], "has no option 'seed'"),
        (["--classes", "3-12"], "classes must lie in 0 ... 9"),
        (["--classes", "x"], "classes must be such as"),
        (["--guidance", -1], "guidance must"),
        (["--device", "gpu"], "device must be such as"),
        (["--device", "cuda:99"], "device must be"),
        (["--precision", "fp8"], "precision must be one of"),
        (["--format", "gif"], "format must be one of"),
        (["--average", "emma"], "average must be one of network"),
        (["--trust", "no"], "is imported only where it is named"),
    ],
)
def test_errors_of_sample_are_one_line_and_leave_nothing(score, tmp_path, capsys, words, text):
    out = tmp_path / "out"
    trust = [] if "--trust" in words else ["--trust", NETWORK]
    assert typed("sample", score, *words, *trust, "--out", out, "--quiet") == 2
    error = capsys.readouterr().err
    assert error.startswith("cmsolvers sample: ") and text in error
    assert error.count("\n") == 1 and not out.exists()


def test_checkpoints_that_are_none(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "file", "empty"):
        assert typed("sample", tmp_path / name, "--out", tmp_path / "out", "--quiet") == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_folders_that_are_of_something_else(score, tmp_path, capsys):
    words = ("sample", score, "--trust", NETWORK, "--num", 3, "--steps", 1, "--quiet", "--out")
    (tmp_path / "a" / "images").mkdir(parents=True)
    assert typed(*words, tmp_path / "a") == 2
    assert "has files of another run" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "samples.json").write_text("[1")
    assert typed(*words, tmp_path / "b") == 2
    assert "must be JSON" in capsys.readouterr().err
    (tmp_path / "c").write_text("a file")
    assert typed(*words, tmp_path / "c") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_session(score, tmp_path, capsys):
    """What the README shows, in small."""
    out, words = tmp_path / "samples", ("--trust", NETWORK, "--quiet", "--device", "cpu")
    given = ("--num", 30, "--classes", "0-9", "--guidance", 2, "--steps", 4, "s_churn=0.2")
    assert typed("sample", score, *given, *words, "--out", out) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("30 samples (30 made in ") and "NFE 7: " in printed
    assert np.load(out / "labels.npy").tolist() == [*range(10)] * 3
    assert typed("sample", score, *given, *words, "--out", out) == 0
    assert capsys.readouterr().out == f"all 30 samples were there already: {out}\n"
    shutil.rmtree(out / "images" / "00000")
    (out / "images" / "00000").mkdir()
    assert typed("sample", score, *given, *words, "--out", out) == 0
    data = tmp_path / "data.npy"
    np.save(data, np.random.default_rng(0).integers(0, 255, (40, 4, 4), np.uint8))
    assert typed("evaluate", out, "--data", data, "--quiet", "--out", tmp_path / "e") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("frechet ") for line in lines)
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert found["samples"]["count"] == 30


# --- signals and pipes ----------------------------------------------------------------------------


def started(*words: object, **given: object) -> subprocess.Popen[str]:
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    line = [sys.executable, "-m", "cmsolvers", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | given
    return subprocess.Popen(line, env=env, text=True, **pipes)


def test_ctrl_c_while_samples_are_made(score, tmp_path):
    """One line and status 130; the same command goes on."""
    out = tmp_path / "out"
    words = ("sample", score, "--trust", NETWORK, "--num", 100_000, "--batch", 20, "--quiet")
    running = started(*words, "--out", out)
    end = time.monotonic() + 200
    while len(list(out.glob("images/*/*.png"))) < 100 and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert error.startswith("cmsolvers sample: stopped: ") and error.count("\n") == 1
    assert "of 100,000 samples are written; the same command goes on" in error
    count = int(error.split(": ")[2].split()[0].replace(",", ""))
    assert 0 < count <= len(list(out.rglob("*.png"))) < 100_000


@pytest.mark.parametrize("after", [0.2, 0.6, 1.2])
def test_ctrl_c_while_python_imports(after):
    """Wherever it is: torch is imported, or the command has just begun."""
    running = started("losses")
    time.sleep(after)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=100)
    assert running.returncode in (130, 0)
    if running.returncode:
        assert error in ("cmsolvers: stopped\n", "cmsolvers losses: stopped\n")


def test_an_output_that_nobody_reads():
    running = started("solvers")
    running.stdout.close()
    running.wait(timeout=200)
    assert running.returncode == 141
    assert running.stderr.read() == ""


def test_lack_of_memory_is_told(monkeypatch, capsys, tmp_path):
    def record(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(sample, "sample", record)
    assert typed("sample", "c", "--out", tmp_path / "o") == 2
    assert capsys.readouterr().err.startswith("cmsolvers sample: not enough memory: ")
