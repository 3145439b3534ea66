"""Loaders of a user's own: every form, resumed, numbered."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from cmsolvers import noise
from cmsolvers.training.data import user_batches

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10) % 4


def own(loader, **options):
    return list(user_batches(loader, **({"seed": 5, "total": 7} | options)))


@pytest.mark.parametrize(
    "form", ["tensor", "pair", "list", "x0", "image", "images", "pixel_values"]
)
def test_forms(form):
    parts = [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])]
    if form == "tensor":
        loader = [x for x, _ in parts]
    elif form in ("pair", "list"):
        loader = [(tuple if form == "pair" else list)(part) for part in parts]
    else:
        name = "label" if form == "image" else "labels"
        loader = [{form: x, name: y.int(), "other": 3} for x, y in parts]
    batches = own(loader)
    assert [len(batch.x0) for batch in batches] == [4, 4, 2, 4, 4, 2, 4]
    assert [batch.step for batch in batches] == list(range(7))
    assert torch.equal(torch.cat([batch.x0 for batch in batches[:3]]), X)
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(24))
    for batch in batches:
        ids = batch.key.rows(len(batch.x0), torch.device("cpu"))
        assert torch.equal(ids[:, 1], batch.index) and bool((ids[:, 0] == 5).all())
        if form == "tensor":
            assert batch.labels is None
        else:
            assert batch.labels.dtype == torch.int64 and torch.equal(
                batch.labels, batch.x0[:, 0].long() // 2 % 4
            )


def test_noise_is_that_of_the_count():
    z = noise.normal((24, 3), 5, draw=2)
    batches = own([X[:4], X[4:8], X[8:]])
    parts = [noise.normal((len(b.x0), 3), b.key, draw=2) for b in batches]
    assert torch.equal(torch.cat(parts), z)


class Fresh(IterableDataset):
    def __iter__(self):
        return iter([torch.tensor([float(k)]) for k in range(5)])


def makers():
    yield "shuffled", lambda: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    yield "workers", lambda: DataLoader(TensorDataset(X, Y), 4, shuffle=True, num_workers=1)
    yield "iterable", lambda: DataLoader(Fresh(), batch_size=2)


@pytest.mark.parametrize(("name", "make"), list(makers()))
def test_a_resumed_run_sees_what_it_would_have_seen(name, make):
    whole = own(make())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for first in (0, 1, 3, 5, 7):
        rest = own(make(), first_step=first)
        assert [batch.step for batch in rest] == list(range(first, 7))
        for batch in rest:
            same = whole[batch.step]
            assert torch.equal(batch.x0, same.x0) and torch.equal(batch.index, same.index)
    assert torch.equal(torch.get_rng_state(), state)
    orders = [torch.cat([b.x0 for b in whole[k : k + 3]]) for k in (0, 3)]
    if name != "iterable":
        assert not torch.equal(*orders) and torch.equal(*(o.sort(0).values for o in orders))
        assert not torch.equal(torch.cat([b.x0 for b in own(make(), seed=6)[:3]]), orders[0])


def test_passes_that_were_trained_on_are_not_read_again():
    class Counted(TensorDataset):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    read: list[int] = []
    for drop_last in (False, True):
        make = partial(DataLoader, Counted(X, Y), 4, shuffle=True, drop_last=drop_last)
        whole = own(make(), total=9)
        read.clear()
        rest = own(make(), total=9, first_step=7)
        assert len(read) == (10 if not drop_last else 12)
        for batch in rest:
            same = whole[batch.step]
            assert torch.equal(batch.x0, same.x0) and torch.equal(batch.index, same.index)


def test_augmentation_by_torch_s_generator():
    class Noisy(TensorDataset):
        def __getitem__(self, i):
            return X[i] + torch.rand(2)

    whole = own(DataLoader(Noisy(X), batch_size=4))
    torch.rand(3)
    (last,) = own(DataLoader(Noisy(X), batch_size=4), first_step=6)
    assert torch.equal(last.x0, whole[6].x0) and not torch.equal(last.x0, whole[3].x0)


def test_set_epoch_is_called_with_the_pass():
    class Loader(list):
        def set_epoch(self, epoch):
            epochs.append(epoch)

    epochs: list[int] = []
    own(Loader([X, X]))
    assert epochs == [0, 1, 2, 3]


def test_ranks_number_samples_as_their_sampler_deals_them_out():
    data, found = TensorDataset(X[:8], Y[:8]), {}
    for rank in range(2):
        sampler = DistributedSampler(data, 2, rank, shuffle=False)
        for batch in own(DataLoader(data, 2, sampler=sampler), total=2, rank=rank, world=2):
            found |= dict(zip(batch.index.tolist(), batch.x0, strict=True))
    assert torch.equal(torch.stack([found[i] for i in range(8)]), X[:8])


def test_what_can_be_read_only_once_is_refused():
    for once in ((X for _ in range(3)), iter([X]), map(torch.clone, [X])):
        with pytest.raises(TypeError, match=r"must begin anew at each iter.*can be read only once"):
            user_batches(once, seed=0, total=3)
    with pytest.raises(TypeError, match="data must be iterable; got 3"):
        user_batches(3, seed=0, total=3)
    with pytest.raises(ValueError, match="pass 0 over it gave none"):
        own([])
    with pytest.raises(ValueError, match="rank must be at most 0"):
        user_batches([X], seed=0, total=3, rank=1)


def test_batches_of_another_form():
    for batch, kind, text in (
        ((X, Y, Y), ValueError, r"x0 or \(x0, labels\); got 3 entries"),
        ({"pixels": X}, ValueError, "one of the keys x0, image, images, .*; it has pixels"),
        ({"x0": X, "image": X}, ValueError, "one of the keys"),
        (X.int(), TypeError, "x0 of a batch of data must be float64, float32"),
        ("text", TypeError, "x0 of a batch of data must be a torch.Tensor"),
        ((X, Y.float()), TypeError, "labels of a batch of data must be integers"),
        ((X, Y[:3]), ValueError, r"must have shape \[10\], one per sample; got \[3\]"),
    ):
        with pytest.raises(kind, match=text):
            own([batch])
