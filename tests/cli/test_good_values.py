"""Good values of options: each one reaches what it is said to decide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import cmsolvers as cm
from cmsolvers import cli, noise, training
from cmsolvers.demo import DemoSettings, work_precision
from cmsolvers.training import models, recipes
from cmsolvers.training import trainer as loop
from cmsolvers.training.checkpoints import RunFolder
from cmsolvers.training.data import Scale
from cmsolvers.training.step import training_step
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
        (("--every", 1), [1, 2, 3, 4, 5, 6, 7]),
        (("--every", 7), [7]),
        (("--every", 0), [7]),
        ((), [7]),
    ],
)
def test_a_checkpoint_is_written_every_so_many_steps(data, monkeypatch, options, steps):
    written = []
    original = RunFolder.save
    monkeypatch.setattr(RunFolder, "save", lambda *a: (written.append(a[1]), original(*a))[1])
    assert train(data, *options) == 0
    assert written == steps


def test_usual_options_of_a_training(data, monkeypatch):
    asked = []
    monkeypatch.setattr(loop.Trainer, "run", lambda self, **options: asked.append((self, options)))
    monkeypatch.setattr(loop.Trainer, "save", lambda self, path: asked.append(path))
    assert run("train", "--data", data, "--out", data.parent) == 0
    (trainer, options), path = asked
    assert trainer.settings == training.TrainingSettings(2000, batch_size=24, lr=2e-3)
    assert (options.pop("folder").path, path) == (data.parent / "score-run", data.parent / "score")
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
    original, made, last = training_step.TrainingStep.__call__, [], 3

    def advance(self, batch, k, signals):
        if k == last:
            raise KeyboardInterrupt
        made.append(k)
        return original(self, batch, k, signals)

    monkeypatch.setattr(training_step.TrainingStep, "__call__", advance)
    assert train(data, "--overwrite") == 130
    folder = data.parent / "score-run"
    assert f"at step 3; --resume goes on from {folder}" in capsys.readouterr().err
    assert RunFolder(folder).newest().step == 3
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


# --- sample -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 5, "count": 3, "offset": 0, "levels": (1.5, 0.4)},
        {"seed": 0, "count": 2, "offset": 7, "levels": ()},
    ],
)
def test_samples_are_those_of_the_options(data, tmp_path, options):
    pytest.importorskip("matplotlib")
    assert train(data, "--model", "ct") == 0
    checkpoint = tmp_path / "ct"
    seed, count, offset, levels = options.values()
    given = ("--seed", seed, "--count", count, "--offset", offset, "--levels", *levels)
    assert run("sample", checkpoint, "--quiet", "--out", tmp_path, *given) == 0
    model = models.load_model(checkpoint)
    x = 20.0 * noise.normal((count, 1, 4, 4), seed, offset=offset)
    key = noise.key(seed, count, offset=offset)
    with torch.no_grad():
        x = cm.consistency_sample(model.function, x, [20.0, *levels], seed=key)
    pixels = Scale.read(model.about["scale"]).to_pixels(x).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), pixels)


@pytest.mark.parametrize(
    ("options", "sampler", "steps"),
    [
        (("--sampler", "euler", "--steps", 4), cm.euler_pf_ode, 4),
        (("--steps", 3), cm.heun_pf_ode, 3),
        ((), cm.heun_pf_ode, 18),
        (("--sampler", "dpmpp_sde", "--steps", 3, "--seed", 4), cm.dpmpp_sde, 3),
    ],
)
def test_sampler_and_steps_are_those_of_the_options(data, tmp_path, options, sampler, steps):
    pytest.importorskip("matplotlib")
    assert train(data) == 0
    checkpoint = tmp_path / "score"
    given = ("--count", 2, "--quiet", "--out", tmp_path, *options)
    assert run("sample", checkpoint, *given) == 0
    model = models.load_model(checkpoint)
    seed = 4 if "--seed" in options else 0
    x = 20.0 * noise.normal((2, 1, 4, 4), seed)
    levels = cm.karras_sigmas(steps, 0.002, 20.0)
    with torch.no_grad():
        told = {} if sampler in (cm.euler_pf_ode, cm.heun_pf_ode) else {"seed": seed}
        x = sampler(model.function, x, levels, **told)
    pixels = Scale.read(model.about["scale"]).to_pixels(x).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), pixels)


# --- evaluate -----------------------------------------------------------------------------------


def evaluated(samples: np.ndarray, data: Path) -> dict[str, float]:
    np.save(data.parent / "samples.npy", samples)
    given = ("--data", data, "--quiet", "--out", data.parent / "out")
    assert run("evaluate", data.parent / "samples.npy", *given) == 0
    return json.loads((data.parent / "out" / "metrics.json").read_text())["samples"]


def test_samples_that_are_the_data(data):
    found = evaluated(np.load(data), data)
    assert found["nearest"] == found["nearest_smallest"] == 0.0
    assert found["frechet_pixels"] == pytest.approx(0.0, abs=1e-9)


def test_one_sample_that_is_of_the_data(data):
    """Memorised ones among others: the smallest distance is 0, the mean is not."""
    images = np.load(data)
    scale = Scale.of(torch.from_numpy(images))
    far = images[:1] + 1000.0
    found = evaluated(np.concatenate((images[:3], far)), data)
    assert found["nearest_smallest"] == 0.0
    apart = np.sqrt(((far - images).astype(np.float64) ** 2).sum((1, 2))).min()
    assert found["nearest"] == pytest.approx(apart / scale.std * 0.5 / 4, rel=1e-5)


@pytest.mark.parametrize("shift", [0.5, -3.0])
def test_samples_that_are_the_data_shifted(data, shift):
    """Pixels count in units of the model: one deviation of the data is 0.5."""
    images = np.load(data)
    apart = abs(shift) / Scale.of(torch.from_numpy(images)).std * 0.5
    assert evaluated(images + shift, data)["frechet_pixels"] == pytest.approx(
        16 * apart**2, rel=1e-4
    )


def test_samples_that_are_all_the_same(data):
    """The distance to a point is that of the means, and the variance of the data."""
    images = np.load(data)
    x = torch.from_numpy(images)
    real = Scale.of(x).to_model(x).double().flatten(1)
    found = evaluated(np.stack([images[5]] * 4), data)
    spread = (real[5] - real.mean(0)).square().sum() + real.var(0).sum()
    assert found["nearest"] == found["nearest_smallest"] == 0.0
    assert found["frechet_pixels"] == pytest.approx(float(spread), rel=1e-6)


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
