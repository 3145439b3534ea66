"""Good values of options: each one reaches what it is said to decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cmsolvers import cli, noise, training
from cmsolvers.demo import DemoSettings, work_precision
from cmsolvers.training import models, recipes
from cmsolvers.training import trainer as loop
from support.saved import content

F64 = torch.float64


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 images of 4 x 4 pixels."""
    path = tmp_path / "data.npy"
    np.save(path, (8 + 4 * noise.normal((24, 4, 4), 3)).numpy())
    return path


def train(data: Path, *options: object) -> int:
    common = ("--data", data, "--out", data.parent, "--steps", 7, "--batch", 8, "--quiet")
    return run("train", *common, *options)


def settings_of(folder: Path, model: str = "score") -> dict:
    _, about = training.read_checkpoint(folder / model)
    return about["settings"]


# --- train --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("--lr", 0.25, "lr"),
        ("--lr", 1e-5, "lr"),
        ("--steps", 3, "steps"),
        ("--batch", 5, "batch_size"),
        ("--seed", 9, "seed"),
    ],
)
def test_options_that_are_settings_of_a_training(data, option, value, name):
    assert train(data) == 0
    usual = settings_of(data.parent)
    assert train(data, option, value, "--overwrite") == 0
    assert settings_of(data.parent) == usual | {name: value}


def test_the_rate_of_the_digits_is_the_default(data):
    for model, rate in (("score", 2e-3), ("ct", 1e-3)):
        assert train(data, "--model", model) == 0
        assert settings_of(data.parent, model)["lr"] == rate


def test_a_rate_moves_the_weights_that_far(data):
    """AdamW's first step moves each weight by the rate, whatever the gradient."""
    moved = []
    for rate in (1e-3, 2e-3):
        assert train(data, "--steps", 1, "--lr", rate, "--overwrite") == 0
        groups, _ = training.read_checkpoint(data.parent / "score")
        begun = models.load_model(data.parent / "score").spec.build(0).state_dict()
        change = [(groups["network"][name] - begun[name]).abs().max() for name in begun]
        moved.append(float(max(change)))
    assert moved == pytest.approx([1e-3, 2e-3], rel=0.05)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("--every", 3), [3, 6, 7]),
        (("--every", 1), [1, 2, 3, 4, 5, 6, 7, 7]),
        (("--every", 7), [7, 7]),
        (("--every", 0), [7]),
        ((), [7]),
    ],
)
def test_a_checkpoint_is_written_every_so_many_steps(data, monkeypatch, options, steps):
    written = []
    monkeypatch.setattr(loop, "write_checkpoint", lambda p, g, about: written.append(about["step"]))
    assert train(data, *options) == 0
    assert written == steps


def test_usual_options_of_a_training(data, monkeypatch):
    asked = []
    monkeypatch.setattr(loop.Trainer, "run", lambda self, **options: asked.append((self, options)))
    assert run("train", "--data", data, "--out", data.parent) == 0
    ((trainer, options),) = asked
    assert trainer.settings == training.TrainingSettings(2000, batch_size=24, lr=2e-3)
    assert options.pop("checkpoint") == data.parent / "score"
    assert options == {"every": 500, "progress": True, "description": "training score"}


@pytest.mark.parametrize(("network", "size"), [("mlp", 4), ("mlp", 16), ("unet", 8)])
def test_the_network_is_the_one_that_was_asked_for(tmp_path, network, size):
    if network == "unet":
        pytest.importorskip("diffusers")
    data = tmp_path / "data.npy"
    np.save(data, noise.normal((8, size, size), 3).numpy())
    assert train(data, "--steps", 1, "--network", network) == 0
    assert models.load_model(tmp_path / "score").spec.network == network


def test_resume_goes_on_from_the_checkpoint(data, monkeypatch, capsys):
    path = data.parent / "score"
    assert train(data) == 0
    whole = content(path)
    original, made, last = loop.Trainer._advance, [], 3

    def advance(self):
        if self.step == last:
            raise KeyboardInterrupt
        made.append(self.step)
        original(self)

    monkeypatch.setattr(loop.Trainer, "_advance", advance)
    assert train(data, "--overwrite") == 130
    assert f"at step 3; --resume goes on from {path}" in capsys.readouterr().err
    assert training.read_checkpoint(path)[1]["step"] == 3
    last = None
    assert train(data, "--resume") == 0
    assert made == [0, 1, 2, 3, 4, 5, 6]  # a run from the start would have the same end
    assert content(path) == whole


def test_the_teacher_is_the_one_that_was_named(data, tmp_path):
    for seed in (1, 2):
        assert train(data, "--seed", seed, "--out", tmp_path / str(seed)) == 0
    teacher = tmp_path / "2" / "score"
    assert train(data, "--model", "cd", "--teacher", teacher) == 0
    _, about = training.read_checkpoint(tmp_path / "cd")
    assert about["course"]["teacher"] == recipes._digest(models.load_model(teacher).network)
    assert about["data"] == "data.npy"


# --- precision, demo ----------------------------------------------------------------------------


def test_count_and_seed_of_a_precision_run(tmp_path, monkeypatch):
    asked = []

    def measure(problem, shown):
        asked.append((problem.count, problem.seed))
        raise ValueError("seen")

    monkeypatch.setattr(work_precision, "measure", measure)
    out = ("--out", tmp_path, "--quiet")
    assert run("precision", "--count", 64, "--seed", 3, *out) == run("precision", *out) == 2
    assert asked == [(64, 3), (1 << 15, 0)]


def test_options_of_the_demo(tmp_path, monkeypatch):
    asked, kept = [], [True, False]

    def run_demo(out, settings, **options):
        asked.append((out, settings, options))
        row = {"what": "a", "value": 1.0, "relation": ">=", "bound": 2.0}
        return {"targets": [row | {"kept": entry} for entry in kept]}

    monkeypatch.setattr("cmsolvers.demo.run_demo", run_demo)
    assert run("demo", "--out", tmp_path, "--tiny", "--seed", 4, "--workers", 1, "--quiet") == 0
    assert run("demo", "--check") == 1
    kept[1] = True
    assert run("demo", "--check") == 0
    assert asked[0] == (tmp_path, DemoSettings.tiny(4), {"workers": 1, "progress": False})
    assert asked[1] == (Path("demo-output"), DemoSettings(), {"workers": None, "progress": True})
