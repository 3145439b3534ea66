"""Order, augmentation and batches: functions of (seed, step, position) and of nothing else."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.training import data
from cmsolvers.training.data import stream_places


def squares(n: int = 44, **options: object) -> data.TensorData:
    x = torch.arange(n * 12, dtype=torch.float32).reshape(n, 1, 3, 4)
    return data.TensorData(x, torch.arange(n) % 5, **options)


def digest(tensors: list[Tensor]) -> str:
    text = sha256()
    for tensor in tensors:
        text.update(tensor.numpy().tobytes())
    return text.hexdigest()[:16]


# --- order ---------------------------------------------------------------------------------------


def test_the_order_never_changes():
    """A golden hash: a run of an earlier version goes on with the samples it would have seen."""
    order = [data.batch_indices(1000, step, 96, seed=7) for step in range(25)]
    assert digest(order) == "f901e06ec81fa3ac"
    keys = noise.uniform((1000, 1), 7, stream=noise.OTHER, draw=1, dtype=torch.float64)[:, 0]
    second = sorted(range(1000), key=lambda i: (float(keys[i]), i))
    assert torch.cat(order[10:20]).tolist() == second[:960]


def test_augmentation_never_changes():
    index = torch.tensor([3, 17, 2**40])
    u = stream_places.augmentation(index, 5, 9)
    whole = noise.uniform((3, 7), 5, stream=5, draw=9, ids=index, dtype=torch.float64)
    assert torch.equal(u[:, :3], whole[:, 4:7])
    assert digest([u]) == "4c496df0a8c94fbf"


def test_no_two_uses_share_a_value():
    """Every pair of uses, each at places that the other may reach."""
    places = torch.arange(64)
    uses = {
        "order": torch.cat([stream_places.order_keys(64, 3, epoch) for epoch in range(8)]),
        "augmentation": torch.cat([stream_places.augmentation(places, 3, k) for k in range(8)]),
        "toys": stream_places.toy_uniforms(places, 3),
    }
    values = {name: set(u.flatten().tolist()) for name, u in uses.items()}
    for name, mine in values.items():
        assert len(mine) == uses[name].numel()
        assert all(not mine & other for key, other in values.items() if key != name)
    seeds = {stream_places.torch_seed(k, 3) for k in range(64)}
    reading = {stream_places.reading_seed(k, 3) for k in range(64)}
    assert len(seeds | reading) == 128
    # The control: two epochs' keys with a draw in common do share values.
    assert values["order"] & set(stream_places.order_keys(64, 3, 2).tolist())


def test_passes_leave_out_what_fills_no_batch():
    seen = torch.cat([data.batch_indices(44, step, 8, 0) for step in range(5)])
    assert len(set(seen.tolist())) == 40
    assert set(seen.tolist()) != set(range(40))


def test_orders_that_cannot_be():
    with pytest.raises(ValueError, match="batch_size must not exceed the data; got 5 with 4"):
        data.batch_indices(4, 0, 5, 0)
    with pytest.raises(ValueError, match="step must be at least 0"):
        data.batch_indices(4, -1, 2, 0)
    with pytest.raises(TypeError, match="seed must be an int"):
        data.batch_indices(4, 0, 2, 0.5)


# --- ranks, resuming -----------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_batch_of_one(world):
    source, size, total = squares(flip=True), 8, 9
    alone = list(data.StepLoader(source, batch_size=size, seed=4, total=total))
    ranks = [
        list(data.StepLoader(source, batch_size=size, seed=4, total=total, rank=rank, world=world))
        for rank in range(world)
    ]
    for step, whole in enumerate(alone):
        parts = [batches[step] for batches in ranks]
        for name in ("x0", "index", "labels"):
            shared = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(shared, getattr(whole, name))
        rows = torch.cat([part.key.rows(size // world, torch.device("cpu")) for part in parts])
        assert torch.equal(rows, whole.key.rows(size, torch.device("cpu")))
        for rank, part in enumerate(parts):
            assert part.step == whole.step == step and part.total == total
            cut = whole.part(rank * (size // world), (rank + 1) * (size // world))
            assert torch.equal(cut.x0, part.x0) and torch.equal(cut.labels, part.labels)
            same = (cut.key.rows(len(cut.x0), cut.x0.device), part.key.table)
            assert torch.equal(*same)


def test_a_run_begins_at_any_step():
    source = squares(flip=True)
    whole = list(data.StepLoader(source, batch_size=8, seed=4, total=12))
    for first in range(13):
        loader = data.StepLoader(source, batch_size=8, seed=4, total=12, first_step=first)
        rest = list(loader)
        assert [batch.step for batch in rest] == list(range(first, 12)) and len(loader) == len(rest)
        for batch in rest:
            assert torch.equal(batch.x0, whole[batch.step].x0)
            assert torch.equal(loader.at(batch.step).x0, batch.x0)


def test_noise_is_the_sample_s_own():
    batch = data.batch_at(squares(), 3, 9, 8, 1)
    z = noise.normal((8, 5), batch.key)
    for row, i in enumerate(batch.index.tolist()):
        assert torch.equal(z[row], noise.normal((1, 5), 1, offset=i)[0])
    half = batch.part(4, 8)
    assert torch.equal(noise.normal((4, 5), half.key), z[4:])
    assert torch.equal(noise.normal((3, 5), half.part(1, 4).key), z[5:])


def test_a_part_of_a_batch_whose_key_has_no_table():
    x = torch.zeros(6, 2)
    batch = data.Batch(x, torch.arange(10, 16), noise.Key(3, 10), 0, 1)
    z = noise.normal((6, 2), batch.key)
    assert torch.equal(noise.normal((2, 2), batch.part(3, 5).key), z[3:5])
    assert batch.part(3, 5).labels is None


def test_worlds_that_cannot_be():
    wrong = {
        "batch_size must be divisible by the number of processes, 3; got 8": {"world": 3},
        "rank must be at most 1": {"rank": 2, "world": 2},
        "batch_size must not exceed the data": {"batch_size": 48},
        "workers must be at least 0": {"workers": -1},
        "first_step must be at least 0": {"first_step": -1},
    }
    for text, options in wrong.items():
        with pytest.raises(ValueError, match=text):
            data.StepLoader(squares(), **({"batch_size": 8, "seed": 0, "total": 9} | options))
    with pytest.raises(TypeError, match="data must be a tensor"):
        data.StepLoader([1, 2, 3], batch_size=1, seed=0, total=1)


# --- data in memory ------------------------------------------------------------------------------


def test_flips_are_those_of_the_uniforms():
    source, plain = squares(flip=True), squares()
    index = torch.arange(44)
    for step in (0, 1, 40):
        x0, labels = source.samples(index, seed=2, step=step)
        u = noise.uniform((44, 5), 2, stream=5, draw=step, ids=index, dtype=torch.float64)[:, 4]
        for i in range(44):
            want = plain.x[i].flip(-1) if u[i] < 0.5 else plain.x[i]
            assert torch.equal(x0[i], want)
        assert 10 < int((u < 0.5).sum()) < 34
        assert torch.equal(labels, index % 5)
    whole = source.samples(index, seed=2, step=1)[0]
    assert torch.equal(source.samples(index[[30, 4]], seed=2, step=1)[0], whole[[30, 4]])
    assert not torch.equal(source.samples(index, seed=2, step=2)[0], whole)
    assert not torch.equal(source.samples(index, seed=3, step=1)[0], whole)


def test_data_keep_their_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert data.batch_at(torch.zeros(9, 2, dtype=dtype), 0, 1, 4, 0).x0.dtype == dtype


def test_labels_that_are_none():
    x = torch.zeros(3, 2)
    for labels, kind, text in (
        (torch.zeros(3), TypeError, "labels must be a tensor of integers"),
        (torch.zeros(2, dtype=torch.int64), ValueError, r"labels must have shape \[3\]"),
        (torch.zeros(3, 4, dtype=torch.int64), ValueError, "one-hot"),
        (torch.tensor([0, -1, 2]), ValueError, "labels must not be negative; got -1"),
    ):
        with pytest.raises(kind, match=text):
            data.TensorData(x, labels)
    with pytest.raises(ValueError, match="below the number of classes, 2; got 2"):
        data.TensorData(x, torch.tensor([0, 1, 2]), classes=2)
    with pytest.raises(ValueError, match="class_names must name 3 classes; got 1"):
        data.TensorData(x, torch.tensor([0, 1, 2]), classes=3, class_names=["a"])
    with pytest.raises(ValueError, match="classes must be left out"):
        data.TensorData(x, classes=2)
    with pytest.raises(ValueError, match="flip must be False"):
        data.TensorData(x, flip=True)
    few = data.TensorData(x, torch.tensor([0, 1, 0], dtype=torch.uint8), classes=7)
    assert few.classes == 7 and few.labels.dtype == torch.int64


def test_fingerprints_tell_data_apart(monkeypatch):
    source = squares()
    x, labels = source.x, source.labels
    other, moved = x.clone(), labels.clone()
    other[31, 0, 2, 1] += 1
    moved[3] = 4
    prints = [
        data.TensorData(*parts, **options).fingerprint
        for parts, options in (
            ((x, labels), {}),
            ((other, labels), {}),
            ((x, moved), {}),
            ((x,), {}),
            ((x, labels), {"flip": True}),
            ((x.double(), labels), {}),
            ((x.reshape(44, 1, 4, 3), labels), {}),
        )
    ]
    assert len(set(prints)) == len(prints) and all(len(text) == 16 for text in prints)
    assert prints[0] == squares().fingerprint == "3cb343d1c74cce11"
    # Of data above the limit a part is digested, the same one each time.
    from cmsolvers.training.data import fingerprints

    monkeypatch.setattr(fingerprints, "WHOLE", 100)
    monkeypatch.setattr(fingerprints, "ROWS", 10)
    rows = fingerprints.fixed_sample(44, 10)
    assert 5 <= len(rows) <= 10 and rows.tolist() == sorted(set(rows.tolist()))
    seen, unseen = x.clone(), x.clone()
    seen[rows[2]] += 1
    unseen[next(i for i in range(44) if i not in rows)] += 1
    part = [data.TensorData(a, labels).fingerprint for a in (x, x.clone(), seen, unseen)]
    assert part[0] == part[1] == part[3] != part[2]


def test_a_data_set_describes_itself():
    about = data.describe(data.digits())
    assert about["samples"] == 1437 and about["shape"] == [1, 8, 8] and about["classes"] == 10
    assert about["class_names"] == [str(k) for k in range(10)] and about["source"] == "digits"
    assert data.Scale.read(about["scale"]) == data.digits().scale
    assert data.describe(data.TensorData(torch.zeros(3, 2)))["scale"] is None


def test_digits():
    train, held = data.digits(), data.digits("held")
    assert len(train) == 1437 and len(held) == 360 and train.scale == held.scale
    assert float(train.x.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(train.x.double().std()) == pytest.approx(0.5, abs=1e-6)
    pixels = train.scale.to_pixels(train.x)
    assert float(pixels.min()) == 0 and float(pixels.max()) == 16
    assert train.fingerprint != held.fingerprint != data.digits(flip=True).fingerprint
    with pytest.raises(ValueError, match="part must be one of 'train', 'held'"):
        data.digits("test")


def test_fixed_scales():
    scale = data.Scale.between(0.0, 255.0)
    pixels = torch.arange(256.0)
    torch.testing.assert_close(scale.to_model(pixels), pixels / 127.5 - 1, atol=1e-7, rtol=0)
    torch.testing.assert_close(scale.to_pixels(scale.to_model(pixels)), pixels, atol=2e-5, rtol=0)
    assert scale.to_pixels(torch.tensor([-1.5, 1.5])).tolist() == [0.0, 255.0]
    assert data.Scale.read(scale.about()) == scale
    with pytest.raises(ValueError, match="low must be below high"):
        data.Scale.between(1.0, 1.0)
