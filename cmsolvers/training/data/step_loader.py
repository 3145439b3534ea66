"""Batches of one rank, step after step, with worker processes that read ahead."""

from __future__ import annotations

import atexit
import multiprocessing
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cmsolvers import checks as check
from cmsolvers.training.data.batches import Batch, as_data, assembled, batch_at
from cmsolvers.training.data.data_protocol import TrainingData
from cmsolvers.training.data.order import batch_indices, rank_rows
from cmsolvers.training.data.tensor_data import TensorData

Place: TypeAlias = "tuple[int, np.ndarray[Any, np.dtype[np.int64]]]"
"""A step and the positions of its samples."""
Read: TypeAlias = tuple[int, Tensor | None, Tensor | None, Exception | None]
"""A step, its x0 and labels, or what went wrong."""
PATIENCE = 5.0
"""Seconds that a worker gets to end by itself."""


class StepLoader:
    """Iterates the batches of one rank from `first_step` to the end of the run.

    Which samples a batch holds, and how they are cropped and flipped, depends on the data, the seed
    and the step alone. Worker processes only change when the files are read.

    Workers ignore SIGINT, SIGTERM and SIGHUP, which reach every process of a terminal or a job: it
    is the trainer that decides when to stop. They end when the iteration does, with `close`, at
    the end of a `with` block, and within seconds of the trainer's death.

    Args:
        data: a data set, or samples [n, ...].
        batch_size: of all ranks together, divisible by `world`.
        seed: of the run.
        total: steps of the whole run.
        first_step: the step to begin with.
        rank: this process's number among `world`.
        world: number of processes.
        device: where batches go; None: where the data are. From the host to CUDA through pinned
            memory, without waiting.
        workers: processes that read files; 0: this one. Data in memory never need them.
        ahead: steps that each worker reads ahead.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, fewer samples than a batch, or a batch
            that the ranks cannot share.
    """

    def __init__(
        self,
        data: Tensor | TrainingData,
        *,
        batch_size: int,
        seed: int,
        total: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str | None = None,
        workers: int = 0,
        ahead: int = 2,
    ) -> None:
        self.data = as_data(data)
        self.rows = rank_rows(batch_size, rank, world)
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.seed = check.count("seed", seed, least=0)
        self.total = check.count("total", total, least=0)
        self.first_step = check.count("first_step", first_step, least=0)
        self.device = None if device is None else torch.device(device)
        self.workers = check.count("workers", workers, least=0)
        self.ahead = check.count("ahead", ahead)
        if len(self.data) < batch_size:
            batch_indices(len(self.data), 0, batch_size, seed)  # says what is wrong
        self._open: _Workers | None = None

    def __len__(self) -> int:
        return max(self.total - self.first_step, 0)

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        if self.workers == 0 or isinstance(self.data, TensorData):
            return (self.at(step) for step in range(self.first_step, self.total))
        return self._read_ahead()

    def at(self, step: int) -> Batch:
        """The batch of one step, read by this process.

        Raises:
            ValueError: a sample cannot be read; the text names it.
        """
        return batch_at(
            self.data,
            step,
            self.total,
            self.batch_size,
            self.seed,
            rank=self.rank,
            world=self.world,
            device=self.device,
        )

    def _read_ahead(self) -> Iterator[Batch]:
        order = _Places(self, range(self.first_step, self.total))
        cuda = self.device is not None and self.device.type == "cuda"
        workers = self._open = _Workers(
            _Reads(self.data, self.seed), order, self.workers, self.ahead, pinned=cuda
        )
        try:
            for step, x0, labels, error in workers:
                if error is not None:
                    raise error
                assert x0 is not None
                yield assembled(
                    x0,
                    labels,
                    self.indices(step),
                    seed=self.seed,
                    step=step,
                    total=self.total,
                    device=self.device,
                )
        finally:
            workers.close()

    def indices(self, step: int) -> Tensor:
        """Positions of this rank's samples at a step, int64 [batch_size / world] on the CPU."""
        return batch_indices(len(self.data), step, self.batch_size, self.seed)[self.rows]

    def close(self) -> None:
        """End the workers; what was read ahead is thrown away."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Places(Sampler[Place]):
    """Which samples each step needs; worked out here, so that no worker keeps an order."""

    def __init__(self, loader: StepLoader, steps: range) -> None:
        self.loader, self.steps = loader, steps

    def __iter__(self) -> Iterator[Place]:
        for step in self.steps:
            yield step, self.loader.indices(step).numpy()

    def __len__(self) -> int:
        return len(self.steps)


class _Reads(Dataset[Read]):
    """What a worker does: the samples of a step."""

    def __init__(self, data: TrainingData, seed: int) -> None:
        self.data, self.seed = data, seed

    def __getitem__(self, place: Place) -> Read:
        step, index = place
        try:
            x0, labels = self.data.samples(torch.from_numpy(index), seed=self.seed, step=step)
        except Exception as error:  # it is raised again where the batch is asked for
            return step, None, None, _sendable(error)
        return step, x0, labels, None


def _sendable(error: Exception) -> Exception:
    """The error, or one of the same text where it cannot cross to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ValueError(f"{type(error).__name__}: {error}")
    return error


def _same(value: Any) -> Any:
    return value


def _begin(worker: int) -> None:
    """In a worker, before its first batch."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class _Workers:
    """Processes under a DataLoader, and their certain end."""

    def __init__(
        self, reads: _Reads, places: _Places, workers: int, ahead: int, *, pinned: bool
    ) -> None:
        loader: DataLoader[Any] = DataLoader(
            reads,
            batch_size=None,
            sampler=places,
            num_workers=workers,
            collate_fn=_same,
            pin_memory=pinned,
            prefetch_factor=ahead,
            worker_init_fn=_begin,
        )
        before = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        self._batches: Iterator[Read] | None = iter(loader)
        self._processes = set(multiprocessing.active_children()) - before
        if handler is not None and threading.current_thread() is threading.main_thread():
            # The DataLoader's would raise the death of a worker in the midst of a training step.
            signal.signal(signal.SIGCHLD, handler)
        # Before the interpreter joins its children, which would wait for a worker for ever.
        atexit.register(self.close)

    def __iter__(self) -> Iterator[Read]:
        return self

    def __next__(self) -> Read:
        if self._batches is None:
            raise StopIteration
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except Exception as error:  # what it is depends on what was under way when a worker died
            if not self._one_is_dead():
                raise
            raise ChildProcessError(
                f"a worker that reads the data ended ({str(error) or type(error).__name__}): was "
                "there enough memory? Fewer workers need less"
            ) from error

    def _one_is_dead(self) -> bool:
        end = time.monotonic() + 1.0
        while all(process.is_alive() for process in self._processes):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def close(self) -> None:
        """Ask the workers to end, wait, and kill those that do not."""
        atexit.unregister(self.close)
        # The DataLoader ends its workers when its iterator goes, which a traceback may hold.
        end = getattr(self._batches, "_shutdown_workers", None)
        self._batches = None
        if end is not None:
            end()
        for process in self._processes:
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes = set()
