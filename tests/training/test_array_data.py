"""Arrays in files: layouts, labels, scales, rows read at each step, and headers that lie."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cmsolvers.training import data
from cmsolvers.training.data import array_headers, fingerprints

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 5, 6, 3), dtype=np.uint8)
LABELS = np.arange(20) % 3


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_labels_of_an_archive(tmp_path: Path):
    for k, name in enumerate(("labels", "label", "y")):
        path = tmp_path / f"{k}.npz"
        np.savez(path, **{name: LABELS.astype(np.int32), "x": PIXELS})
        found = data.array_file(path)
        assert found.shape == (3, 5, 6) and found.classes == 3 and found.source == f"{k}.npz"
        assert found.labels.dtype == torch.int64 and found.labels.tolist() == LABELS.tolist()
        want = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).astype(np.float32))
        torch.testing.assert_close(found.scale.to_pixels(found.x), want, atol=1e-4, rtol=0)
        assert float(found.x.double().std()) == pytest.approx(0.5, abs=1e-6)


def test_labels_in_a_file_of_their_own(tmp_path: Path):
    path, labels = saved(tmp_path / "x.npy", PIXELS), saved(tmp_path / "y.npy", LABELS)
    assert data.array_file(path, labels=labels).labels.tolist() == LABELS.tolist()
    assert data.array_file(path).labels is None
    with pytest.raises(ValueError, match=r"labels must have shape \[20\]"):
        data.array_file(path, labels=saved(tmp_path / "few.npy", LABELS[:19]))
    with pytest.raises(TypeError, match=r"labels must be integers; .*real\.npy has dtype float64"):
        data.array_file(path, labels=saved(tmp_path / "real.npy", LABELS / 2))
    np.savez(tmp_path / "both.npz", x=PIXELS, y=LABELS)
    with pytest.raises(ValueError, match=r"labels must be left out where .*both\.npz has 'y'"):
        data.array_file(tmp_path / "both.npz", labels=labels)
    np.savez(tmp_path / "alone.npz", y=LABELS)
    with pytest.raises(ValueError, match="must hold samples besides y"):
        data.array_file(tmp_path / "alone.npz")


def test_points(tmp_path: Path):
    found = data.array_file(saved(tmp_path / "x.npy", np.arange(14.0).reshape(7, 2)))
    assert found.shape == (2,) and len(found) == 7
    with pytest.raises(ValueError, match=r"images must have shape .*\(3,\)"):
        data.array_file(saved(tmp_path / "one.npy", np.zeros(3)))


def test_fixed_scales(tmp_path: Path):
    for name, array, low, high in (
        ("u1", PIXELS, 0, 255),
        ("u2", PIXELS.astype(np.uint16) * 257, 0, 65535),
        ("i8", PIXELS.astype(np.int64), 0, 255),
        ("b1", PIXELS > 100, 0, 1),
        ("f4", PIXELS.astype(np.float32) / 255, 0, 1),
        ("f8", PIXELS / 127.5 - 1, -1, 1),
    ):
        path = saved(tmp_path / f"{name}.npy", array)
        found = data.array_file(path, scale="minus_one_to_one")
        raw = torch.from_numpy(array.transpose(0, 3, 1, 2).astype(np.float64))
        want = (raw - low) / (high - low) * 2 - 1
        torch.testing.assert_close(found.x.double(), want, atol=2e-7, rtol=0)
        assert (found.scale.low, found.scale.high) == (low, high)
    path = saved(tmp_path / "far.npy", PIXELS * 3.0)
    with pytest.raises(ValueError, match=r"scale must be 'data' or a Scale for values outside"):
        data.array_file(path, scale="minus_one_to_one")
    mine = data.Scale(1.0, 2.0, 0.0, 9.0)
    assert data.array_file(path, scale=mine).scale == mine
    with pytest.raises(ValueError, match="scale must be one of 'data', 'minus_one_to_one'"):
        data.array_file(path, scale="unit")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, ">f4"])
@pytest.mark.parametrize("flip", [False, True])
def test_rows_that_are_read_at_each_step(tmp_path: Path, dtype, flip: bool):
    path, labels = (
        saved(tmp_path / "x.npy", PIXELS.astype(dtype)),
        saved(tmp_path / "y.npy", LABELS),
    )
    options = {"labels": labels, "flip": flip}
    whole = data.array_file(path, **options)
    apart = data.array_file(path, in_memory=100, **options)
    assert isinstance(whole, data.TensorData) and not isinstance(apart, data.TensorData)
    assert apart.scale == whole.scale and apart.shape == whole.shape
    assert len(apart) == 20 and apart.classes == 3
    for step in range(4):
        index = data.batch_indices(20, step, 6, 1)
        here, there = (d.samples(index, seed=1, step=step) for d in (whole, apart))
        assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])
    again = pickle.loads(pickle.dumps(apart))
    assert torch.equal(again.samples(index, seed=1, step=3)[0], there[0])
    options = {"batch_size": 6, "seed": 1, "total": 5}
    with data.StepLoader(apart, workers=2, **options) as loader:
        for batch, same in zip(loader, data.StepLoader(whole, **options), strict=True):
            assert torch.equal(batch.x0, same.x0)


def test_statistics_of_a_large_file_are_those_of_a_part(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fingerprints, "ROWS", 5)
    path = saved(tmp_path / "x.npy", PIXELS)
    found = data.array_file(path, in_memory=0)
    rows = fingerprints.fixed_sample(20, 5)
    part = data.Scale.of(torch.from_numpy(PIXELS[rows.numpy()].astype(np.float32)))
    assert len(rows) <= 5
    assert (found.scale.mean, found.scale.std) == pytest.approx((part.mean, part.std), rel=1e-12)
    assert (found.scale.low, found.scale.high) == (0.0, 255.0)
    changed, print_ = PIXELS.copy(), found.fingerprint
    changed[int(rows[0]), 0, 0, 0] ^= 1
    assert data.array_file(saved(path, changed), in_memory=0).fingerprint != print_
    assert data.array_file(saved(path, PIXELS), in_memory=0).fingerprint == print_
    assert data.array_file(path, in_memory=0, flip=True).fingerprint != print_


def test_numbers_that_are_not_finite(tmp_path: Path, monkeypatch):
    array = PIXELS.astype(np.float32)
    array[7, 0, 0, 0] = np.nan
    path = saved(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match="images must be finite"):
        data.array_file(path)
    monkeypatch.setattr(fingerprints, "ROWS", 2)
    apart = data.array_file(path, in_memory=0)
    apart.samples(torch.tensor([6, 8]), seed=0, step=0)
    with pytest.raises(ValueError, match=r"x\.npy, among rows \[6, 7\]"):
        apart.samples(torch.tensor([6, 7]), seed=0, step=0)


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    about = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


HUGE = (45 * 2**20, 1024, 1024)
CLAIM = r"its header claims shape \[47185920, 1024, 1024\], 45 TiB; the file has 1000 bytes"


def test_headers_that_claim_too_much(tmp_path: Path, monkeypatch):
    """Noticed before anything is allocated: numpy is never asked for the array."""
    path = tmp_path / "x.npy"
    path.write_bytes(header(HUGE) + bytes(1000))
    monkeypatch.setattr(np, "load", lambda *a, **k: pytest.fail("asked for the array"))
    for read in (data.array_file, data.load_images, data.open_data):
        with pytest.raises(ValueError, match=rf"x\.npy must be whole: {CLAIM}"):
            read(str(path))
    for kind, there in ((zipfile.ZIP_STORED, "1000 bytes"), (zipfile.ZIP_DEFLATED, "1000 bytes")):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", kind) as archive:
            archive.writestr("x.npy", header(HUGE) + bytes(1000))
        with pytest.raises(ValueError, match=rf"x\.npz:x must be whole: .* has {there}"):
            data.array_file(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_directory_that_lies_too(tmp_path: Path, kind: int):
    """Of an archive whose directory confirms what the header claims, 3 GiB in 1,000 bytes."""
    path, content = tmp_path / "x.npz", header((3 * 2**20, 1024)) + bytes(1000)
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("x.npy", content)
    sizes = (struct.pack("<L", size) for size in (len(content), len(content) - 1000 + 3 * 2**30))
    raw = path.read_bytes()
    if kind == zipfile.ZIP_STORED:  # the packed size, equal to the other, stays right before it
        pair, claim = (next(sizes), next(sizes))
        path.write_bytes(raw.replace(pair + pair, pair + claim))
    else:
        path.write_bytes(raw.replace(next(sizes), next(sizes)))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("x.npy").file_size > 3 * 2**30
    with pytest.raises(ValueError, match=r"x\.npz:x must be whole: .* claims .* 3 GiB"):
        data.array_file(path)


def test_an_archive_larger_than_memory(tmp_path: Path, monkeypatch):
    np.savez(tmp_path / "x.npz", x=PIXELS)
    monkeypatch.setattr(array_headers, "memory_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r"x\.npz:x must fit into memory, 1000 bytes; .*1\.76 KiB"):
        data.array_file(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUM",
        b"\x93NUMPY\x01\x00\xff\xff{",
        header((3, -5, 2, 2)) + bytes(100),
        b"PK\x03\x04junk",
        b"\x93NUMPY\x09\x00" + bytes(100),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"must be an \.npy or \.npz file of numbers; .*x\.npy"):
        data.array_file(path)


def test_contents_that_are_no_numbers(tmp_path: Path):
    with pytest.raises(ValueError, match=r"images must be numbers; .* has dtype <U1"):
        data.array_file(saved(tmp_path / "x.npy", np.array(["a"])))
    path = tmp_path / "o.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"images must be numbers; .* has dtype object"):
        data.array_file(path)


def test_a_truncated_archive(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=PIXELS)
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz"):
        data.array_file(path)


def test_flips_need_images(tmp_path: Path):
    path = saved(tmp_path / "x.npy", np.arange(14.0).reshape(7, 2))
    for in_memory in (0, 1000):
        with pytest.raises(ValueError, match="flip must be False unless data"):
            data.array_file(path, flip=True, in_memory=in_memory)


def test_rows_of_other_layouts(tmp_path: Path):
    for array in (PIXELS[..., 0], PIXELS.transpose(0, 3, 1, 2), np.asfortranarray(PIXELS)):
        path = saved(tmp_path / "x.npy", array)
        whole, apart = data.array_file(path), data.array_file(path, in_memory=0)
        index = torch.tensor([3, 19, 0])
        here, there = (d.samples(index, seed=0, step=0)[0] for d in (whole, apart))
        assert torch.equal(here, there) and apart.shape == whole.shape
