"""Folders of pictures: exact pixels, and errors that name the file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cmsolvers import noise
from cmsolvers.training import data
from cmsolvers.training.data import picture_decoding, pictures
from support.picture_files import folder, gradient, save

pytest.importorskip("PIL")
IDENTITY = data.Scale(0.0, 0.5, 0.0, 255.0)
"""Models see the pixels themselves."""


def pixels(path: Path, size=10, **options) -> torch.Tensor:
    """The only picture below a folder, as models see it at this scale."""
    source = data.image_folder(path, size, scale=IDENTITY, **options)
    assert len(source) == 1
    return source.samples(torch.tensor([0]), seed=0, step=0)[0][0]


# --- pixels --------------------------------------------------------------------------------------


def test_the_middle_is_cut_without_a_change(tmp_path: Path):
    wide, high = gradient(10, 16), gradient(17, 10)
    save(tmp_path / "wide" / "a.png", wide)
    save(tmp_path / "high" / "a.png", high)
    assert torch.equal(pixels(tmp_path / "wide"), torch.tensor(wide[:, 3:13]).permute(2, 0, 1))
    assert torch.equal(pixels(tmp_path / "high"), torch.tensor(high[4:14]).permute(2, 0, 1))


def test_rectangles(tmp_path: Path):
    save(tmp_path / "a.png", gradient(10, 16))
    source = data.image_folder(tmp_path, (5, 8), scale=IDENTITY)
    x = source.samples(torch.tensor([0]), seed=0, step=0)[0]
    assert source.shape == (3, 5, 8) == x.shape[1:]
    # Row i lies around rows 2 i and 2 i + 1 of the picture.
    rows = torch.arange(5) * 2.0 + 0.5
    assert (x[0, 0] - rows[:, None]).abs()[1:-1].max() <= 1


def test_pictures_are_scaled_to_cover(tmp_path: Path):
    """Of 40 x 64 pixels at size 10, column j is around columns 4 j + 12 ... 4 j + 15."""
    save(tmp_path / "a.png", gradient(40, 64))
    x = pixels(tmp_path)
    columns = torch.arange(10) * 4.0 + 13.5
    assert (x[1] - columns).abs()[:, 1:-1].max() <= 1
    assert (x[0] - (torch.arange(10) * 4.0 + 1.5)[:, None]).abs()[1:-1].max() <= 1
    assert torch.equal(x[2], torch.full((10, 10), 7.0))


def test_random_places_are_those_of_the_uniforms(tmp_path: Path):
    source = data.image_folder(folder(tmp_path), 10, crop="random", flip=True, scale=IDENTITY)
    index = torch.tensor([5, 0, 11, 7])
    seen = set()
    for step in range(12):
        x, labels = source.samples(index, seed=3, step=step)
        u = noise.uniform((4, 7), 3, stream=5, draw=step, ids=index, dtype=torch.float64)[:, 4:]
        for row, i in enumerate(index.tolist()):
            k = 2 * i if i < 6 else 2 * (i - 6) + 1  # class_0 holds the even pictures
            left = int(u[row, 2] * 7)  # of 16 columns 10 are seen
            want = torch.tensor(gradient(10, 16, k)[:, left : left + 10]).permute(2, 0, 1)
            assert torch.equal(x[row], want.flip(-1) if u[row, 0] < 0.5 else want)
            assert labels[row] == int(i >= 6)
            seen.add(left)
    assert len(seen) > 4
    assert torch.equal(
        source.samples(index[2:3], seed=3, step=11)[0],
        source.samples(index, seed=3, step=11)[0][2:3],
    )


def test_every_place_is_cut_somewhere(tmp_path: Path):
    save(tmp_path / "a.png", gradient(13, 10))
    view = picture_decoding.View(10, 10)
    tops = []
    for u in (1e-9, 0.2, 0.25 + 1e-9, 0.6, 1 - 1e-9):
        with open(tmp_path / "a.png", "rb") as file:
            tops.append(int(view.pixels(file, "a", (u, 0.5))[0, 0, 0]))
    assert tops == [0, 0, 1, 2, 3]


def test_modes(tmp_path: Path):
    from PIL import Image

    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    want = torch.tensor(grey, dtype=torch.float32)
    colours = gradient(10, 10)
    colour = torch.tensor(colours, dtype=torch.float32).permute(2, 0, 1)
    palette = Image.fromarray(colours).quantize(256)
    alpha = np.concatenate((colours, np.full((10, 10, 1), 255, np.uint8)), axis=2)
    half = alpha.copy()
    half[0, 0, 3], half[0, 1, 3] = 0, 51
    deep = grey.astype(np.uint16) * 257 + 3
    for name, image in {
        "grey": Image.fromarray(grey),
        "bits": Image.fromarray(grey > 50),
        "rgb": Image.fromarray(colours),
        "palette": palette,
        "alpha": Image.fromarray(alpha),
        "half": Image.fromarray(half),
        "deep": Image.fromarray(deep),
        "greyalpha": Image.fromarray(grey).convert("LA"),
    }.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png")
    assert torch.equal(pixels(tmp_path / "grey", channels=1)[0], want)
    assert torch.equal(pixels(tmp_path / "grey"), want.expand(3, 10, 10))
    assert torch.equal(pixels(tmp_path / "greyalpha", channels=1)[0], want)
    assert torch.equal(pixels(tmp_path / "bits", channels=1)[0], 255.0 * (want > 50))
    assert torch.equal(pixels(tmp_path / "rgb"), colour)
    looked_up = torch.tensor(np.asarray(palette.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(pixels(tmp_path / "palette"), looked_up.float())
    assert torch.equal(pixels(tmp_path / "alpha"), colour)
    with_alpha = pixels(tmp_path / "rgb", channels=4)
    assert torch.equal(with_alpha[:3], colour) and bool((with_alpha[3] == 255).all())
    assert torch.equal(
        pixels(tmp_path / "half", channels=4)[3, 0, :3], torch.tensor([0.0, 51, 255])
    )
    on_white = pixels(tmp_path / "half")
    assert on_white[:, 0, 0].tolist() == [255.0] * 3
    fifth = 0.2 * colour[:, 0, 1] + 0.8 * 255
    assert (on_white[:, 0, 1] - fifth).abs().max() <= 1
    assert torch.equal(on_white[:, 1:], colour[:, 1:])
    deep_want = torch.tensor(deep.astype(np.float64) / 257).float()
    torch.testing.assert_close(
        pixels(tmp_path / "deep", channels=1)[0], deep_want, atol=1e-4, rtol=0
    )
    assert torch.equal(pixels(tmp_path / "deep")[0], pixels(tmp_path / "deep")[2])
    luma = pixels(tmp_path / "rgb", channels=1, grey=True)[0]
    exact = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    assert (luma - exact).abs().max() <= 1


def test_orientation_of_exif(tmp_path: Path):
    from PIL import Image

    image = Image.fromarray(gradient(10, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # the first row is the right side: turn by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    turned = torch.tensor(np.rot90(gradient(10, 16), -1)[3:13].copy()).permute(2, 0, 1)
    assert torch.equal(pixels(tmp_path), turned.float())


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path: Path):
    from PIL import Image

    ramp = np.tile(np.linspace(0, 255, 800).astype(np.uint8), (600, 1))
    Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(tmp_path / "a.jpg", quality=95)
    x = pixels(tmp_path, 30)
    want = torch.linspace(0, 255, 800)[100:700].reshape(30, 20).mean(dim=1)
    assert (x - want)[..., 1:-1].abs().max() < 3


def test_a_thin_picture_needs_little_memory(tmp_path: Path):
    save(tmp_path / "a.png", np.zeros((1, 200_000), np.uint8))
    assert pixels(tmp_path, 64, channels=1).shape == (1, 64, 64)


# --- scale ---------------------------------------------------------------------------------------


def test_scales(tmp_path: Path):
    fixed = data.image_folder(folder(tmp_path), 10)
    every = torch.arange(12)
    x = fixed.samples(every, seed=0, step=0)[0].double()
    raw = data.image_folder(tmp_path, 10, scale=IDENTITY).samples(every, seed=0, step=0)[0]
    torch.testing.assert_close(x, raw.double() / 127.5 - 1, atol=1e-7, rtol=0)
    measured = data.image_folder(tmp_path, 10, scale="data")
    assert measured.scale.mean == pytest.approx(float(raw.double().mean()), rel=1e-12)
    assert measured.scale.std == pytest.approx(float(raw.double().std()), rel=1e-12)
    assert (measured.scale.low, measured.scale.high) == (0.0, 255.0)
    y = measured.samples(every, seed=0, step=0)[0]
    assert float(y.double().std()) == pytest.approx(0.5, abs=1e-6)
    torch.testing.assert_close(measured.scale.to_pixels(y), raw, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="scale must be one of 'minus_one_to_one', 'data'"):
        data.image_folder(tmp_path, 10, scale="unit")
    one = save(tmp_path / "grey" / "a.png", np.full((10, 10), 9, np.uint8)).parent
    with pytest.raises(ValueError, match="must not all be of one colour"):
        data.image_folder(one, 10, scale="data")


def test_statistics_of_a_part(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pictures, "STATISTICS", 5)
    source = data.image_folder(folder(tmp_path), 10, scale="data")
    chosen = pictures.fixed_sample(12, 5)
    raw = data.image_folder(tmp_path, 10, scale=IDENTITY)
    part = raw.samples(chosen, seed=0, step=0)[0].double()
    assert len(chosen) <= 5
    assert source.scale.mean == pytest.approx(float(part.mean()), rel=1e-12)


# --- what is in the folder -----------------------------------------------------------------------


def test_classes_and_order(tmp_path: Path, monkeypatch):
    folder(tmp_path, 9, classes=3)
    save(tmp_path / "class_1" / "deep" / "er" / "x.PNG", gradient(10, 16, 50))
    (tmp_path / "class_1" / "notes.txt").write_text("no picture")
    (tmp_path / "class_1" / "README").write_text("no picture")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "class_0" / "._00.png").write_bytes(b"of another system")
    source = data.image_folder(tmp_path, 10, scale=IDENTITY)
    assert source.class_names == ("class_0", "class_1", "class_2") and source.classes == 3
    assert source.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 3
    (note,) = source.notes
    assert "2 files that are no pictures were left alone (1 .txt, 1 without ending)" in note
    x, labels = source.samples(torch.arange(10), seed=0, step=0)
    assert x[:, 0, 0, 0].tolist() == [0, 3, 6, 1, 4, 7, 50, 2, 5, 8]
    assert torch.equal(labels, source.labels)
    entries = os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(
        os, "scandir", lambda p: Backwards(sorted(entries(p), key=lambda e: e.name, reverse=True))
    )
    again = data.image_folder(tmp_path, 10, scale=IDENTITY)
    assert again.fingerprint == source.fingerprint
    assert torch.equal(again.samples(torch.arange(10), seed=0, step=0)[0], x)


def test_folders_that_are_no_classes(tmp_path: Path):
    one = folder(tmp_path / "one", 4, classes=1)
    assert data.image_folder(one, 10).classes is None
    assert data.image_folder(one, 10, labels=True).class_names == ("class_0",)
    flat = folder(tmp_path / "flat", 4, classes=0)
    assert data.image_folder(flat, 10).classes is None
    with pytest.raises(ValueError, match="must have a subfolder for each class"):
        data.image_folder(flat, 10, labels=True)
    two = folder(tmp_path / "two", 4)
    assert data.image_folder(two, 10, labels=False).labels is None
    (two / "class_9").mkdir()
    (two / "class_9" / "a.txt").write_text("")
    with pytest.raises(ValueError, match="there are none in class_9: fill or remove it"):
        data.image_folder(two, 10)
    save(two / "beside.png", gradient(10, 16))
    with pytest.raises(ValueError, match=r"1, such as beside\.png, beside the folders class_0"):
        data.image_folder(two, 10)
    assert len(data.image_folder(two, 10, labels=False)) == 5


def test_links_in_a_circle(tmp_path: Path):
    folder(tmp_path / "a", 4)
    (tmp_path / "a" / "class_0" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "class_1" / "same").symlink_to(tmp_path / "a" / "class_0")
    assert len(data.image_folder(tmp_path / "a", 10)) == 6


def test_folders_without_pictures(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is none at .*nowhere"):
        data.image_folder(tmp_path / "nowhere", 10)
    with pytest.raises(ValueError, match=r"must hold pictures .* it has none$"):
        data.image_folder(tmp_path, 10)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="it has none, but 1 other files"):
        data.image_folder(tmp_path, 10)
    with pytest.raises(NotADirectoryError, match=r"a\.txt is a file"):
        data.image_folder(tmp_path / "a.txt", 10)


def test_fingerprints_of_folders(tmp_path: Path):
    first = data.image_folder(folder(tmp_path / "a"), 10).fingerprint
    assert data.image_folder(folder(tmp_path / "b"), 10).fingerprint == first
    for options in ({"crop": "random"}, {"flip": True}, {"scale": "data"}, {"labels": False}):
        assert data.image_folder(tmp_path / "a", 10, **options).fingerprint != first
    assert data.image_folder(tmp_path / "a", 9).fingerprint != first
    changed = tmp_path / "b" / "class_1" / "03.png"
    content = changed.read_bytes()
    prints = []
    for end in (b"a", b"b"):  # behind the picture; both files have the same size
        changed.write_bytes(content + end)
        prints.append(data.image_folder(tmp_path / "b", 10).fingerprint)
    assert len({first, *prints}) == 3
    changed.write_bytes(content)
    assert data.image_folder(tmp_path / "b", 10).fingerprint == first
    changed.rename(changed.with_name("04.png"))
    assert data.image_folder(tmp_path / "b", 10).fingerprint != first


# --- bad pictures --------------------------------------------------------------------------------


def bomb(path: Path, side: int) -> None:
    """A PNG of side x side pixels in a few hundred bytes; its rows are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b""))


def spoil(root: Path) -> dict[str, str]:
    """Damage some pictures of a folder in different ways; what is said of each."""
    whole = (root / "class_0" / "00.png").read_bytes()
    (root / "class_0" / "00.png").write_bytes(whole[: len(whole) // 2])
    (root / "class_0" / "02.png").write_bytes(b"")
    (root / "class_1" / "01.png").write_bytes(b"junk" * 100)
    bomb(root / "class_1" / "03.png", 20_000)
    bomb(root / "class_1" / "05.png", 12_000)
    return {
        "00.png": "is no whole picture: ",
        "02.png": "is no whole picture: its content is of no format that is read",
        "01.png": "is no whole picture: its content is of no format that is read",
        "03.png": "must have at most 89478485 pixels",
        "05.png": "must have at most 89478485 pixels; it has 12000 x 12000",
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_pictures(tmp_path: Path, monkeypatch):
    said = spoil(folder(tmp_path))
    with pytest.raises(ValueError, match=r"00\.png is no whole picture.*skip_bad leaves such"):
        data.image_folder(tmp_path, 10)
    monkeypatch.setattr(pictures, "LOOKED_AT", 0)
    late = data.image_folder(tmp_path, 10)
    names = [late.gallery.name(i) for i in range(12)]
    for name, text in said.items():
        (i,) = (i for i, full in enumerate(names) if full.endswith(name))
        with pytest.raises(ValueError, match=rf"^{names[i]} {text}"):
            late.samples(torch.tensor([i]), seed=0, step=0)
    good = data.image_folder(tmp_path, 10, skip_bad=True)
    assert len(good) == 7 and good.bad == 5
    assert "5 of 12 pictures were left out: " in good.notes[0] and "00.png is no" in good.notes[0]
    x, labels = good.samples(torch.arange(7), seed=0, step=0)
    bases = ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert bases == [4, 6, 8, 10, 7, 9, 11]
    assert labels.tolist() == [0] * 4 + [1] * 3
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="all are bad"):
        data.image_folder(tmp_path, 10, skip_bad=True)


def test_colours_where_grey_is_wanted(tmp_path: Path):
    folder(tmp_path)
    with pytest.raises(ValueError, match=r"00\.png must be grey where channels is 1; it has col"):
        data.image_folder(tmp_path, 10, channels=1)
    with pytest.raises(ValueError, match=r"channels must be 1 .* got 2"):
        data.image_folder(tmp_path, 10, channels=2)
    assert data.image_folder(tmp_path, 10, channels=1, grey=True).shape == (1, 10, 10)
    save(tmp_path / "grey" / "a.png", np.stack([np.eye(10, dtype=np.uint8)] * 3, axis=-1))
    assert data.image_folder(tmp_path / "grey", 10, channels=1).shape == (1, 10, 10)
    save(tmp_path / "float" / "a.tif", np.eye(10, dtype=np.float32))
    with pytest.raises(ValueError, match=r"a\.tif must have pixels of 8 bits.* mode F"):
        data.image_folder(tmp_path / "float", 10)


def test_a_picture_that_goes_away(tmp_path: Path):
    source = data.image_folder(folder(tmp_path), 10)
    (tmp_path / "class_0" / "04.png").unlink()
    with pytest.raises(ValueError, match=r"04\.png cannot be read: No such file"):
        source.samples(torch.tensor([2]), seed=0, step=0)


def test_no_format_that_starts_programs(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(ValueError, match="of no format that is read"):
        data.image_folder(tmp_path, 10)
