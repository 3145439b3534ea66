"""Data by name, and folders that `datasets` saved."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cmsolvers.training import data
from support import ROOT
from support.picture_files import folder, gradient, save


def test_what_a_name_stands_for(tmp_path: Path):
    assert len(data.open_data("digits")) == 1437
    assert len(data.open_data("digits", part="held")) == 360
    assert data.open_data("toy:spirals", n=50).fingerprint == data.toys("spirals", 50).fingerprint
    np.save(tmp_path / "x.npy", np.arange(48.0).reshape(4, 3, 4))
    assert data.open_data(str(tmp_path / "x.npy"), flip=True).flip
    pytest.importorskip("PIL")
    found = data.open_data(folder(tmp_path / "folder"), size=10, channels=3)
    assert found.fingerprint == data.image_folder(tmp_path / "folder", 10).fingerprint


def test_names_that_stand_for_nothing(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nothing at digit \(digits\?\)"):
        data.open_data("digit")
    with pytest.raises(FileNotFoundError, match=r"nothing at swiss_rol \(toy:swiss_roll\?\)"):
        data.open_data("swiss_rol")
    with pytest.raises(FileNotFoundError, match=r"or a folder; there is nothing at /no/where$"):
        data.open_data("/no/where")
    with pytest.raises(ValueError, match="toy must be one of"):
        data.open_data("toy:rolls")
    with pytest.raises(TypeError, match="data must be a name or a path; got 3"):
        data.open_data(3)


def test_options_that_are_none(tmp_path: Path):
    with pytest.raises(ValueError, match=r"flp is no option of data digits, .*: flip\?"):
        data.open_data("digits", flp=True)
    with pytest.raises(ValueError, match=f"size must be given for data {tmp_path}"):
        data.open_data(tmp_path)
    with pytest.raises(ValueError, match="name is no option of data toy:spirals, which takes n, s"):
        data.open_data("toy:spirals", name="two_moons")


WITHOUT = """
import sys
for name in ("PIL", "datasets", "sklearn", "accelerate", "diffusers"):
    sys.modules[name] = None
from cmsolvers.training import open_data
for source in (sys.argv[1], "digits"):
    try:
        open_data(source, **({"size": 8} if source != "digits" else {}))
    except ModuleNotFoundError as error:
        print(error)
"""


def test_what_is_not_installed_is_named_where_it_is_needed(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    pictures, digits = done.stdout.splitlines()
    assert "with Pillow, which is not installed" in pictures
    assert "with sklearn (scikit-learn), which is not installed; the extra `demo`" in digits


# --- saved data sets -----------------------------------------------------------------------------


def table(count: int = 6, **others):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL")
    from PIL import Image

    pictures = []
    for k in range(count):
        file = io.BytesIO()
        Image.fromarray(gradient(10, 16, k)).save(file, "PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    columns = {"picture": pictures, "kind": [k % 3 for k in range(count)], **others}
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])}
    features |= {name: datasets.Value("int64") for name in others}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_saved_data_set(tmp_path: Path):
    table().save_to_disk(str(tmp_path / "saved"))
    found = data.open_data(tmp_path / "saved", size=10)
    assert len(found) == 6 and found.classes == 3 and found.class_names == ("a", "b", "c")
    x, labels = found.samples(torch.tensor([4, 1]), seed=0, step=0)
    for row, k in enumerate((4, 1)):
        want = torch.tensor(gradient(10, 16, k)[:, 3:13]).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(x[row], want, atol=1e-6, rtol=0)
    assert labels.tolist() == [1, 1]
    options = {"batch_size": 3, "seed": 1, "total": 4}
    with data.StepLoader(found, workers=2, **options) as loader:
        for batch, same in zip(loader, data.StepLoader(found, **options), strict=True):
            assert torch.equal(batch.x0, same.x0)


def test_splits_and_columns(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    parts = {"train": table(6, other=list(range(6))), "test": table(4, other=[1] * 4)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "two"))
    train = data.arrow_folder(tmp_path / "two", 10)
    test = data.arrow_folder(tmp_path / "two", 10, split="test", label="other")
    assert len(train) == 6 and len(test) == 4 and train.fingerprint != test.fingerprint
    assert train.labels.tolist() == [0, 1, 2] * 2 and test.labels.tolist() == [1] * 4
    for options, text in (
        ({"split": "valid"}, "split must be one of test, train; got 'valid'"),
        ({"image": "pictures"}, "image must be a column of .*picture, kind, other; got 'pictures'"),
        ({"image": "kind"}, "image must be a column of pictures; 'kind' is ClassLabel"),
        ({"label": "class"}, "label must be a column of .*; got 'class'"),
        ({"label": "picture"}, "label must be a column of integers; 'picture' is Image"),
    ):
        with pytest.raises(ValueError, match=text):
            data.arrow_folder(tmp_path / "two", 10, **options)
    parts["test"].save_to_disk(str(tmp_path / "one"))
    with pytest.raises(ValueError, match="split must be left out"):
        data.arrow_folder(tmp_path / "one", 10, split="train")


def test_fingerprints_of_saved_data_sets(tmp_path: Path):
    prints = []
    for k, count in enumerate((6, 6, 5)):
        table(count).save_to_disk(str(tmp_path / str(k)))
        prints.append(data.arrow_folder(tmp_path / str(k), 10).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_bad_rows(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = table().cast_column("picture", datasets.Image(decode=False)).to_dict()
    rows["picture"][2] = {"bytes": rows["picture"][2]["bytes"][:40], "path": None}
    rows["picture"][4] = None
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("int32")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "bad"))
    with pytest.raises(ValueError, match=r"row 2 of .*bad is no whole picture"):
        data.arrow_folder(tmp_path / "bad", 10)
    found = data.arrow_folder(tmp_path / "bad", 10, label="kind", skip_bad=True)
    assert found.bad == 2 and found.labels.tolist() == [0, 1, 0, 2]
    assert "row 4 of" in found.notes[0] and "cannot be read: it is empty" in found.notes[0]


def test_folders_that_are_no_saved_data_sets(tmp_path: Path):
    pytest.importorskip("datasets")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.arrow_folder(tmp_path / "nowhere", 10)
    save(tmp_path / "a.png", gradient(10, 10))
    with pytest.raises(ValueError, match="is not one"):
        data.arrow_folder(tmp_path, 10)
    table().save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ValueError, match="must be a whole data set; it cannot be read"):
        data.open_data(tmp_path / "saved", size=10)
