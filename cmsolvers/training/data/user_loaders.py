"""Batches of a user's own loader, in the form that losses and the trainer know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from cmsolvers import checks as check
from cmsolvers.training.data.batches import Batch, assembled
from cmsolvers.training.data.stream_places import reading_seed

IMAGES = ("x0", "image", "images", "pixel_values")
LABELS = ("label", "labels")


def user_batches(
    loader: Iterable[object],
    *,
    seed: int,
    total: int,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """The batches of steps first_step to total - 1, from any iterable that can be read again.

    A batch of the loader is a tensor x0 [b, ...], a pair (x0, labels), or a dict with one of the
    keys "x0", "image", "images", "pixel_values" and perhaps "label" or "labels". Where the loader
    ends it is read again from its beginning; b may change from batch to batch.

    Positions (`Batch.index`, and the ids of the noise) count the samples of the run: sample j of
    this process is number j * world + rank, as `torch.utils.data.DistributedSampler` deals them
    out. Cutting the batches in another way leaves each sample its number; noise and levels also
    depend on the step.

    A resumed run reads the batches that were trained on again and leaves them out; of a plain
    `DataLoader`, whose passes have a known length, only those of the pass under way. For that the
    loader must give the same batches each time: while it is read, torch's generator (not those of
    numpy and of Python) is set to a function of (seed, step), and `set_epoch(pass)` of the loader
    or its sampler is called where there is one. A `DataLoader(shuffle=True)` is such a loader.

    Args:
        loader: a DataLoader, a list of batches, or an object of your own with `__iter__`. It deals
            with ranks itself.
        seed: of the run.
        total: steps of the whole run.
        first_step: the step to begin with.
        rank: this process's number among `world`.
        world: number of processes.
        device: where batches go; None: where they are.

    Raises:
        TypeError: a generator, which can be read once only; a batch of another form.
        ValueError: a loader that gives no batch.
    """
    if not isinstance(loader, Iterable):
        raise TypeError(f"data must be iterable; got {check.describe(loader)}")
    if isinstance(loader, Iterator):
        raise TypeError(
            "data must begin anew at each iter(data): a second pass, and a resumed run, read it "
            f"again from the start; got {check.describe(loader)}, which can be read only once. "
            "Give a DataLoader, a list, or an object whose __iter__ makes the generator"
        )
    world = check.count("world", world)
    rank = check.count("rank", rank, least=0, most=world - 1)
    seed, total = check.count("seed", seed, least=0), check.count("total", total, least=0)
    first = check.count("first_step", first_step, least=0)

    def numbered() -> Iterator[Batch]:
        step, count, epoch = _whole_passes(loader, first)
        batches = _read(loader, seed, step, epoch)
        while step < total:
            x0, labels = opened(next(batches))
            if step >= first:
                index = torch.arange(count, count + len(x0)) * world + rank
                yield assembled(x0, labels, index, seed=seed, step=step, total=total, device=device)
            count += len(x0)
            step += 1

    return numbered()


def _whole_passes(loader: Iterable[object], first: int) -> tuple[int, int, int]:
    """Steps, samples and passes before step `first` that need not be read again.

    That is known of a DataLoader whose order depends on the state of torch's generator, or of a
    DistributedSampler's pass, and on nothing that was read before.
    """
    if type(loader) is not DataLoader or loader.generator is not None or loader.persistent_workers:
        return 0, 0, 0
    sampler = loader.sampler
    known = type(sampler) in (SequentialSampler, DistributedSampler) or (
        type(sampler) is RandomSampler and sampler.generator is None
    )
    if not known or type(loader.batch_sampler) is not BatchSampler or len(loader) == 0:
        return 0, 0, 0
    assert isinstance(sampler, Sized) and loader.batch_size is not None
    samples = len(loader) * loader.batch_size if loader.drop_last else len(sampler)
    passes = first // len(loader)
    return passes * len(loader), passes * samples, passes


def _read(loader: Iterable[object], seed: int, step: int, epoch: int) -> Iterator[object]:
    """The batches from a step on, with which a pass begins."""
    batches: Iterator[object] | None = None
    while True:
        begins = batches is None
        with torch.random.fork_rng(devices=[]):
            # A DataLoader takes its order from torch's generator, a data set may its augmentation.
            torch.default_generator.manual_seed(reading_seed(step, seed))
            if batches is None:
                for holder in (loader, getattr(loader, "sampler", None)):
                    if callable(set_epoch := getattr(holder, "set_epoch", None)):
                        set_epoch(epoch)
                batches = iter(loader)
            batch = next(batches, _NOTHING)
        if batch is not _NOTHING:
            yield batch
            step += 1
        elif begins:
            raise ValueError(f"data must give batches; pass {epoch} over it gave none")
        else:
            batches, epoch = None, epoch + 1


_NOTHING = object()


def opened(batch: object) -> tuple[Tensor, Tensor | None]:
    """x0 [b, ...] and labels int64 [b] of a batch as a user's loader gives it.

    Raises:
        TypeError, ValueError: another form; the text says which forms are known.
    """
    labels: object = None
    x0: object = batch
    if isinstance(batch, Mapping):
        names = [name for name in IMAGES if name in batch]
        if len(names) != 1:
            raise ValueError(
                f"a batch of data must have one of the keys {', '.join(IMAGES)}; "
                f"it has {', '.join(map(str, batch))}"
            )
        x0 = batch[names[0]]
        labels = next((batch[name] for name in LABELS if name in batch), None)
    elif isinstance(batch, (tuple, list)):
        if len(batch) not in (1, 2):
            raise ValueError(
                f"a batch of data must be x0 or (x0, labels); got {len(batch)} entries"
            )
        x0, labels = batch[0], batch[1] if len(batch) == 2 else None
    x0 = check.state("x0 of a batch of data", x0)
    if labels is None:
        return x0, None
    if not isinstance(labels, Tensor) or labels.dtype in check.PRECISION:
        raise TypeError(
            f"labels of a batch of data must be integers in a tensor; got {check.describe(labels)}"
        )
    if labels.shape != x0.shape[:1]:
        raise ValueError(
            f"labels of a batch of data must have shape [{len(x0)}], one per sample; "
            f"got {list(labels.shape)}"
        )
    return x0, labels.to(torch.int64)
