"""Evaluation of samples: numbers that are known, files of many kinds, features of one's own."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.runs.evaluate import EvaluationSettings, evaluate
from cmsolvers.runs.evaluate import features as extractors
from cmsolvers.runs.evaluate import sample_measures as measures
from cmsolvers.runs.evaluate.sample_reading import open_samples
from cmsolvers.runs.sample import SampleSettings, sample
from cmsolvers.tasks import metrics
from cmsolvers.training.data import Scale, digits, open_data
from cmsolvers.training.models import load_model
from support.sampled_models import NETWORK, checkpoint

F64 = torch.float64


def measured(samples: Path, data: Path | str, out: Path, **given: object) -> dict:
    found = evaluate(
        EvaluationSettings(samples, **{"data": str(data), "device": "cpu", **given}),
        out,
        progress=False,
    )
    assert json.loads((out / "metrics.json").read_text()) == found
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """80 images of 4 x 4 pixels, in floats."""
    path = tmp_path / "data.npy"
    np.save(path, (8 + 4 * noise.normal((80, 4, 4), 3)).numpy())
    return path


def test_samples_that_are_the_data(images, tmp_path):
    found = measured(images, images, tmp_path / "out")
    rows = found["metrics"]
    assert rows["frechet"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert rows["sliced_wasserstein"]["value"] == 0.0
    assert rows["mmd2"]["value"] < 0 and rows["kernel_distance"]["value"] < 0  # pairs of itself
    assert rows["precision"]["value"] == rows["recall"]["value"] == 1.0
    assert found["nearest"]["samples"]["smallest"] == found["nearest"]["samples"]["mean"] == 0.0
    assert found["nearest"]["share_below_1_percent_of_it"] == 1.0  # memorised
    assert found["nearest"]["other_data"]["smallest"] > 0.1
    assert (tmp_path / "out" / "neighbours.png").is_file()


@pytest.mark.parametrize("shift", [0.5, -3.0])
def test_samples_that_are_the_data_shifted(images, tmp_path, shift):
    """Pixels count in units of the model: one deviation of the data is 0.5."""
    x = np.load(images)
    apart = abs(shift) / Scale.of(torch.from_numpy(x)).std * 0.5
    np.save(tmp_path / "samples.npy", x + np.float32(shift))
    rows = measured(tmp_path / "samples.npy", images, tmp_path / "out")["metrics"]
    assert rows["frechet"]["value"] == pytest.approx(16 * apart**2, rel=1e-4)
    assert 0.6 * apart < rows["sliced_wasserstein"]["value"] < 1.4 * apart


def test_numbers_are_those_of_the_functions(images, tmp_path):
    samples = (8 + 3 * noise.normal((50, 4, 4), 5)).numpy()
    np.save(tmp_path / "samples.npy", samples)
    np.save(tmp_path / "held.npy", (8 + 4 * noise.normal((40, 4, 4), 6)).numpy())
    found = measured(
        tmp_path / "samples.npy", images, tmp_path / "out", held=str(tmp_path / "held.npy")
    )
    scale = Scale.of(torch.from_numpy(np.load(images)))
    x, data = (scale.to_model(torch.from_numpy(a)).flatten(1) for a in (samples, np.load(images)))
    rows = found["metrics"]
    assert rows["frechet"]["value"] == pytest.approx(metrics.frechet_distance(x, data), rel=1e-6)
    near = metrics.nearest_distance(x, data)
    assert found["nearest"]["samples"]["mean"] == pytest.approx(float(near.mean()), rel=1e-6)
    held = open_data(str(tmp_path / "held.npy")).samples(torch.arange(40), seed=0, step=0)[0]
    assert rows["frechet"]["held_out"] == pytest.approx(
        metrics.frechet_distance(held.flatten(1), data), rel=1e-6
    )


def test_the_standard_error_is_that_of_other_samples():
    """Bootstrap of a mean of n unit normals: 1 / sqrt(n)."""
    x = noise.normal((400, 1), 0)
    found = measures.bootstrap(lambda a: float(a.mean()), x, 0, 1.0)
    assert found == pytest.approx(1 / 20, rel=0.4)
    assert measures.bootstrap(lambda a: float(a.mean()), x, 0, 1e12) is None
    assert measures.bootstrap(lambda a: 1.0, x, 0, 1.0) == 0.0


# --- reading ------------------------------------------------------------------------------------


def test_the_folder_of_sample_is_read_in_the_scale_of_the_data(tmp_path):
    """0 and 255 of the pictures are the ends of the digits' 0 ... 16; either format is the same."""
    pytest.importorskip("sklearn")
    data = digits()
    path = checkpoint(tmp_path / "checkpoint", "consistency", (1, 8, 8), scale=data.scale)
    read = []
    for kind in ("png", "npz"):
        given = SampleSettings(path, num=12, format=kind, device="cpu", trusted=[NETWORK])
        sample(given, tmp_path / kind, progress=False)
        read.append(open_samples(tmp_path / kind, data).samples(torch.arange(12), seed=0, step=0))
    assert torch.equal(read[0][0], read[1][0])
    picture = np.asarray(Image.open(tmp_path / "png/images/00000/00000003.png")) / 255 * 16
    want = data.scale.to_model(torch.from_numpy(picture))
    torch.testing.assert_close(read[0][0][3, 0], want, atol=1e-6, rtol=0)
    found = measured(tmp_path / "npz", "digits", tmp_path / "out", features="pixels", num=60)
    assert found["samples"]["count"] == 12 and found["held_out"] == {"count": 60}
    about = json.loads((tmp_path / "png" / "samples.json").read_text())
    (tmp_path / "png" / "samples.json").write_text(json.dumps(about | {"complete": False}))
    with pytest.raises(ValueError, match="its run has not ended"):
        open_samples(tmp_path / "png", data)


def pictures(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for i, size in enumerate(sizes):
        pixels = (255 * torch.rand(*size[::-1], 3)).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def bad_samples(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.npy"
    if kind == "huge":
        with open(path, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 38, 3, 4, 4)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(1000))
    elif kind == "cut":
        np.save(path, np.zeros((9, 3, 4, 4), np.float32))
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "nan":
        np.save(path, np.full((9, 3, 4, 4), np.nan, np.float32))
    elif kind == "pickle":
        np.save(path, np.array([{}, {}]), allow_pickle=True)
    elif kind == "one":
        np.save(path, np.zeros((1, 3, 4, 4), np.float32))
    elif kind == "other":
        np.save(path, np.zeros((9, 3, 5, 5), np.float32))
    elif kind == "corrupt":
        path = pictures(folder / kind, (4, 4), (4, 4), (4, 4))
        (path / "1.png").write_bytes((path / "1.png").read_bytes()[:60])
    elif kind == "mixed":
        path = pictures(folder / kind, (4, 4), (4, 4), (5, 4))
    elif kind == "empty":
        path = pictures(folder / kind)
    elif kind == "nothing":
        path = folder / "nothing"
    return path


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("huge", "its header claims shape"),
        ("cut", "its header claims shape"),
        ("nan", "must be finite"),
        ("pickle", "must be numbers"),
        ("one", "samples must hold at least 2"),
        ("other", r"must have the shape of the data, \[3, 4, 4\]"),
        ("corrupt", "1.png is no whole picture"),
        ("mixed", "4 x 4 pixels; .*2.png has 5 x 4"),
        ("empty", "must hold pictures"),
        ("nothing", "samples must be a folder or an .npy or .npz file"),
    ],
)
def test_bad_samples_are_told_in_one_line(tmp_path, kind, text):
    data = pictures(tmp_path / "data", (4, 4), (4, 4), (4, 4))
    path = bad_samples(kind, tmp_path)
    with pytest.raises((ValueError, OSError), match=text) as caught:
        measured(path, data, tmp_path / "out", options={"size": 4})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_points(tmp_path):
    pytest.importorskip("matplotlib")
    x = open_data("toy:two_moons", n=200).samples(torch.arange(200), seed=0, step=0)[0]
    np.save(tmp_path / "samples.npy", (x + 0.3).numpy())
    found = measured(
        tmp_path / "samples.npy", "toy:two_moons", tmp_path / "out", options={"n": 200}
    )
    assert found["metrics"]["frechet"]["value"] == pytest.approx(2 * 0.3**2, rel=1e-3)
    assert found["picture"] == "points.png"


# --- features -----------------------------------------------------------------------------------


def brightness(x: Tensor) -> Tensor:
    assert x.dtype == torch.float32 and float(x.min()) >= 0 and float(x.max()) <= 1
    return torch.stack((x.flatten(1).mean(1), x.flatten(1).std(1)), dim=1)


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x.mean(dim=(1, 2))


def one_row(x: Tensor) -> Tensor:
    return torch.zeros(1, 3)


def nan_rows(x: Tensor) -> Tensor:
    return torch.full((len(x), 3), torch.nan)


@pytest.mark.parametrize(("name", "dimension"), [("brightness", 2), ("Rows", 4)])
def test_features_of_ones_own(images, tmp_path, monkeypatch, name, dimension):
    monkeypatch.setitem(sys.modules, "own_features", sys.modules[__name__])
    samples = (8 + 3 * noise.normal((50, 4, 4), 5)).clamp(0, 16).numpy()
    np.save(tmp_path / "samples.npy", samples)
    given = {"features": f"own_features:{name}", "batch": 7}
    found = measured(tmp_path / "samples.npy", images, tmp_path / "out", **given)
    assert found["features"] == {"name": f"own_features:{name}", "dimension": dimension}
    scale = Scale.of(torch.from_numpy(np.load(images)))
    rows = [
        (torch.from_numpy(a)[:, None].clamp(scale.low, scale.high) - scale.low)
        / (scale.high - scale.low)
        for a in (samples, np.load(images))
    ]
    function = brightness if name == "brightness" else Rows().eval()
    want = metrics.frechet_distance(*(function(x) for x in rows))
    assert found["metrics"]["frechet"]["value"] == pytest.approx(want, rel=1e-4)
    assert found["nearest"]["space"] == "pixels"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own_features:one_row", r"must return shape \[80, d\]"),
        ("own_features:nan_rows", "must be finite"),
        ("own_features:brightnes", "did you mean 'brightness'"),
        ("no_such_module:f", "cannot be imported"),
        ("pixel", "did you mean 'pixels'"),
        ("", "features must be one of"),
        ("classifier", "knows digits alone"),
        ("inception", "weights must be the file"),
    ],
)
def test_bad_features(images, tmp_path, monkeypatch, name, text):
    monkeypatch.setitem(sys.modules, "own_features", sys.modules[__name__])
    with pytest.raises((ValueError, ImportError), match=text):
        measured(images, images, tmp_path / "out", features=name)


class FakeInception(nn.Module):
    """The interface of torch-fidelity's extractor: uint8 [b, 3, H, W] -> a tuple of tensors."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        assert Path(feature_extractor_weights_path).read_bytes() == b"weights"

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3 and not self.training
        return (x.flatten(1).float()[:, ::7],)


def test_inception_is_that_of_torch_fidelity_and_is_called_fid(images, tmp_path, monkeypatch):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    found = measured(
        images,
        images,
        tmp_path / "out",
        features="inception",
        weights=tmp_path / "weights.pth",
    )
    assert found["metrics"].keys() >= {"fid", "kid"} and "frechet" not in found["metrics"]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert found["features"]["weights_sha256"] == digest
    plain = measured(images, images, tmp_path / "plain")
    assert not plain["metrics"].keys() & {"fid", "kid"}


def test_inception_without_torch_fidelity(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    scale = Scale.between(0.0, 255.0)
    with pytest.raises(ModuleNotFoundError, match=r"pip install cmsolvers\[fid\]"):
        extractors.inception(tmp_path / "weights.pth", scale, torch.device("cpu"))


def test_the_classifier_of_the_digits_is_trained_once(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    from cmsolvers.runs.evaluate import sample_evaluation as evaluation

    monkeypatch.setattr(evaluation, "STEPS", 3)
    held = digits("held")
    np.save(tmp_path / "samples.npy", held.scale.to_pixels(held.x[:200]).numpy())
    words = (tmp_path / "samples.npy", "digits", tmp_path / "out")
    first = measured(*words, num=150)
    assert first["features"] == {"name": "classifier", "dimension": 32}
    monkeypatch.setattr(evaluation, "classifier_trainer", None)
    second = measured(*words, num=150)
    assert first["metrics"] == second["metrics"]
    place = tmp_path / "out" / "classifier-0"
    given = measured(*words[:2], tmp_path / "b", num=150, classifier=place)
    assert given["metrics"] == first["metrics"]


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_a_run_says_what_its_pixels_stand_for(tmp_path, kind):
    """A model of data in 20 ... 40, against data in 0 ... 100: a grey of 30 stays one of 30."""
    path = checkpoint(tmp_path / "c", "consistency", scale=Scale(30.0, 5.0, 20.0, 40.0))
    given = SampleSettings(path, num=6, format=kind, device="cpu", trusted=[NETWORK])
    sample(given, tmp_path / "samples", progress=False)
    rows = (100 * torch.rand(40, 4, 4, generator=torch.Generator().manual_seed(0))).numpy()
    rows[0, 0, 0], rows[0, 0, 1] = 0.0, 100.0
    np.save(tmp_path / "data.npy", rows)
    data = open_data(str(tmp_path / "data.npy"))
    x = open_samples(tmp_path / "samples", data).samples(torch.arange(6), seed=0, step=0)[0]
    function = load_model(path, trusted=[NETWORK]).function
    made = cm.consistency_sample(function, 20.0 * noise.normal((6, 1, 4, 4), 0), [20.0])
    want = Scale(30.0, 5.0, 20.0, 40.0).to_pixels(made)
    grey = 20 / 255  # of 8 bits
    torch.testing.assert_close(data.scale.to_pixels(x), want, rtol=0, atol=0.51 * grey)
    assert float(want.max() - want.min()) > 20 * grey


def test_folders_of_pictures(tmp_path):
    """The same pictures are the data; their negatives are not, and their distance is known."""
    data = pictures(tmp_path / "data", *[(6, 5)] * 30)
    found = measured(data, data, tmp_path / "a", options={"size": [5, 6]})
    assert found["metrics"]["frechet"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert found["samples"]["shape"] == [3, 5, 6] and found["nearest"]["samples"]["mean"] == 0.0
    (tmp_path / "negatives").mkdir()
    for i in range(30):
        pixels = np.asarray(Image.open(data / f"{i}.png"))
        Image.fromarray(255 - pixels).save(tmp_path / "negatives" / f"{i}.png")
    rows = np.stack([np.asarray(Image.open(data / f"{i}.png")) for i in range(30)]) / 127.5 - 1
    found = measured(tmp_path / "negatives", data, tmp_path / "b", options={"size": [5, 6]})
    apart = 4 * (rows.mean(0) ** 2).sum()  # the covariance is the same
    assert found["metrics"]["frechet"]["value"] == pytest.approx(apart, rel=1e-4)
    assert found["nearest"]["samples"]["smallest"] > 1.0
