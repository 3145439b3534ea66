"""Worker processes of one thread each: results then do not depend on the number of cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch

R = TypeVar("R")


class Workers:
    """Runs jobs in `count` processes of one thread each; with one, in this process."""

    def __init__(self, count: int) -> None:
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_one_thread)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Callable[[], R]]) -> Iterator[tuple[int, R]]:
        """(index, result) of each job, in the order in which they end.

        Args:
            jobs: what another process can be sent, such as `functools.partial` of functions here.
        """
        if self._pool is None:
            for i, job in enumerate(jobs):
                yield i, job()
            return
        futures: dict[Future[R], int] = {self._pool.submit(job): i for i, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


@contextmanager
def one_thread() -> Iterator[None]:
    """A block on one thread and with deterministic algorithms; both are reset at its end."""
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
