"""The configurations and scripts of recipes/: read, built, and run in a tiny form."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cmsolvers import cli
from cmsolvers.runs.building.loss_options import Setting, times_of
from cmsolvers.runs.config import preset, read_config
from cmsolvers.training.models import Spec, load_model

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = sorted(RECIPES.glob("*/*.toml"))
PATCHES = ("teacher", "cd", "ect", "trigflow", "sct", "meanflow")
TINY = [
    "train.steps=2",
    "train.batch_size=4",
    "train.precision=no",
    "network.options={channels=[8, 8], layers=1}",
    "logging.picture_every=0",
    "run.device=cpu",
]


def script(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / "patches" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def typed(*words):
    return cli.main([str(word) for word in words])


@pytest.fixture
def patches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(RECIPES / "patches"))
    monkeypatch.setattr(sys, "argv", ["make_patches", "data", "--train", "24", "--held", "12"])
    script("make_patches").main()
    return tmp_path


def train(name, *words):
    return typed("train", RECIPES / "patches" / f"{name}.toml", "--quiet", *TINY, *words)


def test_every_folder_has_a_page_and_configurations():
    for folder in {path.parent for path in CONFIGS}:
        assert (folder / "README.md").is_file()
    assert {path.stem for path in CONFIGS if path.parent.name == "patches"} == set(PATCHES)
    assert len(CONFIGS) == 11


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_configuration_is_read(path):
    with pytest.raises(ValueError, match="no key"):
        read_config(path, ["loss.nam=cd"])
    assert read_config(path).loss.name


@pytest.mark.parametrize("name", ["score", "cd", "ct", "ect"])
def test_digits_are_the_presets(name):
    assert read_config(RECIPES / "digits" / f"{name}.toml") == preset(f"digits-{name}")
    other = read_config(RECIPES / "digits" / f"{name}.toml", ["train.steps=3"])
    assert other != preset(f"digits-{name}")


@pytest.mark.parametrize("name", ["score", "ct"])
def test_digits_are_built(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert typed("train", RECIPES / "digits" / f"{name}.toml", "--dry-run", "run.device=cpu") == 0
    assert "1,437 samples [1, 8, 8]" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_cifar_has_the_levels_of_its_source():
    config = read_config(RECIPES / "cifar10_ect" / "ect.toml")
    pairs = times_of(config.loss.times, Setting(Spec("consistency", (3, 32, 32)), 8000))
    t = torch.tensor([0.01, 1.0, 80.0], dtype=torch.float64)
    expected = t * (1 - (1 + 8 / (1 + t.exp())) / 256)
    torch.testing.assert_close(pairs.lower(t, 7999), expected, rtol=1e-12, atol=0)
    assert (config.optimizer.name, config.optimizer.lr, config.train.batch_size) == (
        "radam",
        1e-4,
        128,
    )
    assert dataclasses.asdict(pairs)["mean"] == -1.1 and pairs.std == 2.0


def test_parts_of_a_photograph_share_no_pixel():
    make = script("make_patches")
    image = np.arange(40 * 160, dtype=np.uint32).reshape(40, 160, 1)
    train, held = make.parts(image)
    some, other = (make.patches([part], 200, seed) for seed, part in enumerate((train, held)))
    assert some.shape == other.shape == (200, 32, 32, 1)
    assert not set(some.ravel().tolist()) & set(other.ravel().tolist())
    again = make.patches([train], 200, 0)
    assert (some == again).all() and (some != make.patches([train], 200, 1)).any()


def test_halving_is_the_mean_of_four():
    image = np.array([[1, 2, 9], [3, 4, 9], [0, 0, 0]], np.uint8)[..., None]
    assert script("make_patches").halved(image).tolist() == [[[3]]]  # 2.5, half up


def test_features_are_means_and_deviations():
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    found = script("patch_features").means_and_contrast(x)
    assert found.shape == (2, 256)
    block = x[1, :, 4:8, 8:12]
    torch.testing.assert_close(found[1].view(4, 8, 8)[:3, 1, 2], block.mean(dim=(1, 2)))
    contrast = block.mean(dim=0).std(correction=0)
    torch.testing.assert_close(found[1].view(4, 8, 8)[3, 1, 2], contrast)


@pytest.mark.slow
def test_patches_from_data_to_figure(patches):
    for name in PATCHES:
        assert train(name) == 0
    for name in [name for name in PATCHES if name != "trigflow"]:
        steps = 2
        to = Path("samples") / f"{name}-{steps}"
        words = ("--steps", steps, "--num", 12, "--device", "cpu", "--format", "npz", "--quiet")
        assert typed("sample", name, *words, "--out", to) == 0
        words = ("--data", "data/train.npy", "--held", "data/held.npy", "--quiet", "--features")
        own = "patch_features:means_and_contrast"
        out = Path("measures") / f"{name}-{steps}"
        assert typed("evaluate", to, *words, own, "--out", out) == 0
    sys.argv[1:] = ["."]
    script("report").main()
    rows = json.loads((patches / "results.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["teacher", "cd", "ect", "sct", "meanflow"]
    assert all(row["metrics"]["frechet"]["value"] > 0 for row in rows)
    assert (patches / "patches.png").stat().st_size > 10_000


def test_the_teacher_of_the_patches_trains(patches):
    assert train("teacher") == 0
    assert train("cd", "--dry-run") == 0
    assert train("meanflow", "--dry-run") == 0


def test_cifar_begins_with_a_checkpoint_of_diffusers(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    unet = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    unet.save_pretrained("edm-cifar10/unet")
    diffusers.EDMEulerScheduler().save_pretrained("edm-cifar10/scheduler")
    index = {
        "_class_name": "Pipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "EDMEulerScheduler"],
    }
    Path("edm-cifar10/model_index.json").write_text(json.dumps(index))
    Path("cifar10").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(f"cifar10/{i}.png")
    words = ("--quiet", "train.steps=1", "train.batch_size=2", "run.device=cpu")
    assert typed("train", RECIPES / "cifar10_ect" / "ect.toml", *words) == 0
    model = load_model("cifar10-ect")
    assert model.spec.kind == "consistency"
    assert model.network.model.config.dropout == 0.2 and unet.config.dropout == 0.0
