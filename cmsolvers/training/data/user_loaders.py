"""Batches of a user's own loader, in the form that losses and the trainer know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.data.batches import Batch, assembled
from cmsolvers.training.data.stream_places import pass_seed

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

    A resumed run reads the batches that were trained on again and leaves them out. For that the
    loader must give the same batches each time: at the beginning of each pass torch's generator is
    set to a function of (seed, pass), and `set_epoch(pass)` of the loader or its sampler is called
    where there is one, so that a `DataLoader(shuffle=True)` does.

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

    def batches() -> Iterator[Batch]:
        count = 0
        for step, batch in zip(range(total), _passes(loader, seed), strict=False):
            x0, labels = opened(batch)
            if step >= first:
                index = torch.arange(count, count + len(x0)) * world + rank
                yield assembled(x0, labels, index, seed=seed, step=step, total=total, device=device)
            count += len(x0)

    return batches()


def _passes(loader: Iterable[object], seed: int) -> Iterator[object]:
    """The batches of one pass after the other."""
    epoch = 0
    while True:
        for holder in (loader, getattr(loader, "sampler", None)):
            if callable(set_epoch := getattr(holder, "set_epoch", None)):
                set_epoch(epoch)
        with _generator(pass_seed(epoch, seed)):
            # A DataLoader asks torch's generator for its order now and at its first batch.
            batches = iter(loader)
            batch = next(batches, _NOTHING)
        if batch is _NOTHING:
            raise ValueError(f"data must give batches; pass {epoch} over it gave none")
        while batch is not _NOTHING:
            yield batch
            batch = next(batches, _NOTHING)
        epoch += 1


_NOTHING = object()


@contextmanager
def _generator(seed: int) -> Iterator[None]:
    """Torch's generator of the CPU in a state of its own, and afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


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
