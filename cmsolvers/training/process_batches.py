"""The batches of one process of a training, from any kind of data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.data import Batch, StepLoader, TrainingData, as_data, user_batches
from cmsolvers.training.step.placement import Placement
from cmsolvers.training.training_settings import TrainingSettings


class ProcessBatches:
    """A process's share of every batch, read again from any step on.

    Args:
        data: samples [n, ...], a `TrainingData`, or batches of somebody's own loader.
        settings: of the run.
        placement: of the process.
        workers: processes that read data which are not in memory.

    Attributes:
        known: data whose order is ours; None for somebody's own loader.

    Raises:
        TypeError: data of none of these kinds.
        ValueError: fewer samples than a batch, or a batch that cannot be shared.
    """

    def __init__(
        self,
        data: Tensor | TrainingData | Iterable[object],
        settings: TrainingSettings,
        placement: Placement,
        workers: int,
    ) -> None:
        self._settings, self._placement = settings, placement
        self._workers = check.count("workers", workers, least=0)
        self._data, self.known = data, _known(data)
        parts = placement.world * settings.accumulate
        if settings.batch_size % parts:
            raise ValueError(
                "batch_size must be a multiple of processes times accumulate, "
                f"{placement.world} x {settings.accumulate} = {parts}; got {settings.batch_size}"
            )
        if self.known is not None:
            self._loader(self.known, 0)  # says what does not fit

    @contextmanager
    def from_step(self, first: int) -> Iterator[Iterator[Batch]]:
        """The batches of steps `first`, `first` + 1, ...; what reads them ends with the block."""
        place, settings = self._placement, self._settings
        if self.known is not None:
            with self._loader(self.known, first) as loader:
                yield iter(loader)
            return
        yield user_batches(
            cast("Iterable[object]", self._data),
            seed=settings.seed,
            total=settings.steps,
            first_step=first,
            rank=place.rank,
            world=place.world,
            device=place.device,
        )

    def _loader(self, data: TrainingData, first: int) -> StepLoader:
        return StepLoader(
            data,
            batch_size=self._settings.batch_size,
            seed=self._settings.seed,
            total=self._settings.steps,
            first_step=first,
            rank=self._placement.rank,
            world=self._placement.world,
            device=self._placement.device,
            workers=self._workers,
        )


def _known(data: object) -> TrainingData | None:
    if isinstance(data, Tensor) or callable(getattr(data, "samples", None)):
        return as_data(cast("Tensor | TrainingData", data))
    if not isinstance(data, Iterable):
        raise TypeError(
            "data must be a tensor [n, ...], have the methods of TrainingData, or be batches to "
            f"iterate; got {check.describe(data)}"
        )
    return None
