"""Good values of options: each one reaches what it is said to decide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import cmsolvers as cm
from cmsolvers import cli, noise
from cmsolvers.demo import DemoSettings, work_precision
from cmsolvers.runs.config import template
from cmsolvers.training import models
from cmsolvers.training.data import Scale

F64 = torch.float64


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 images of 4 x 4 pixels."""
    path = tmp_path / "data.npy"
    np.save(path, (8 + 4 * noise.normal((24, 4, 4), 3)).numpy())
    return path


def train(data: Path, model: str = "score") -> int:
    """Train a preset of the digits on other data, into the folder of its name."""
    config = data.parent / f"{model}.toml"
    config.write_text(template(f"digits-{model}"), encoding="utf-8")
    out = data.parent / model
    keys = [f"data.source={data}", f"run.out={out}", "train.steps=7", "train.batch_size=8"]
    return run("train", config, *keys, "--quiet")


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
    assert train(data, "ct") == 0
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
