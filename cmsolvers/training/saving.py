"""Checkpoints of a run: one process writes what all of them hold, and all read it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cmsolvers.training.checkpoints import (
    RunFolder,
    read_checkpoint,
    stored_bytes,
    write_checkpoint,
)
from cmsolvers.training.data import TrainingData
from cmsolvers.training.step.bookkeeping import Books
from cmsolvers.training.step.training_step import TrainingStep
from cmsolvers.training.training_state import Groups, TrainingState


class Saves:
    """Writes and reads the checkpoints of a run.

    Args:
        step: of the run: its network, averages, optimiser and placement.
        books: of steps and losses.
        about: what a resumed run must have as it was.
        data: of the run, whose fingerprint a resumed run must have; None: of somebody's loader.
    """

    def __init__(
        self,
        step: TrainingStep,
        books: Books,
        about: Mapping[str, object],
        data: TrainingData | None,
    ) -> None:
        self._placement, self._books = step.placement, books
        self._about, self._data, self._steps = about, data, step.settings.steps
        self._state = TrainingState(
            step.network, step.averages, step.rates.optimizer, step.precision, step.settings
        )
        self._folder: Path | None = None  # of which the run's checkpoints are
        self._step = -1  # of the newest one in it

    # --- writing ------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write a checkpoint folder."""
        self._write(lambda groups, about: write_checkpoint(path, groups, about))
        self._books.tell(lambda monitor: monitor.saved(path))

    def save_in(self, place: RunFolder) -> None:
        """Write one into a run's folder, unless this step's is there already."""
        step = self._books.step
        if self._step == step:
            return
        self._write(lambda groups, about: place.save(step, groups, about))
        self._step = step
        if self._placement.rank == 0:
            path = place.checkpoints()[-1]
            self._books.tell(lambda monitor: monitor.saved(path))

    def save_on_the_way(self, place: RunFolder) -> None:
        """`save_in`, where a disk that takes nothing is a warning: the last checkpoint stays."""
        try:
            self.save_in(place)
        except OSError as error:
            warnings.warn(
                f"no checkpoint could be written at step {self._books.step}, the run goes on: "
                f"{error}",
                RuntimeWarning,
                stacklevel=4,
            )

    def _write(self, write: Callable[[Groups, Mapping[str, object]], object]) -> None:
        self._books.read()
        first = self._placement.rank == 0
        groups = self._state.tensors() if first or self._placement.sharded else {}
        with self._placement.together():
            if first:
                self._state.check_finite(groups)
                write(
                    {**groups, **self._books.tensors()},
                    {**self._described(), **self._state.about(), **self._books.about()},
                )

    @contextmanager
    def held(self, place: RunFolder) -> Iterator[None]:
        """Hold a folder's lock, once it is known to take this run's checkpoints.

        Raises:
            ValueError: another trainer holds it, or it holds checkpoints of another run.
            OSError: it cannot be written, or the disk has no room.
        """
        path = place.path.absolute()
        with ExitStack() as stack:
            with self._placement.together():
                if self._placement.rank == 0:
                    stack.enter_context(place.locked())
                    if self._folder != path and (others := place.checkpoints()):
                        raise ValueError(
                            "folder must hold no checkpoint that the run did not begin with; "
                            f"{others[-1]} is one: resume(folder) goes on from it"
                        )
                    place.probe(stored_bytes(self._state.outline()))
            if self._folder != path:
                self._folder, self._step = path, -1
            yield

    # --- reading ------------------------------------------------------------------------------

    def load(self, path: Path) -> None:
        """Go on from a checkpoint folder."""
        groups, about = read_checkpoint(path)
        self._take(path, groups, about)

    def resume(self, place: RunFolder) -> None:
        """Go on from the newest checkpoint of a run's folder."""
        found = place.newest()
        if found is None:
            raise FileNotFoundError(f"folder must hold a checkpoint; there is none in {place.path}")
        self._take(found.path, found.groups, found.about)
        for text in found.skipped:
            warnings.warn(f"{text}; going on from {found.path}", RuntimeWarning, stacklevel=4)
        self._folder, self._step = place.path.absolute(), found.step

    def _take(self, path: Path, groups: Groups, about: Mapping[str, object]) -> None:
        if not isinstance(about.get("settings"), dict):
            raise ValueError(f"path must be a checkpoint of a training run; got {path}")
        for name, ours in self._described().items():
            if name == "fingerprint" and name not in about:
                continue
            if about.get(name) != ours:
                what = "data (their fingerprint)" if name == "fingerprint" else name
                raise ValueError(f"{path}: {what} must be {about.get(name)} to resume; got {ours}")
        put_state = self._state.checked(path, groups, about)
        put_books = self._books.checked(path, groups, about, self._steps)
        put_state()
        put_books()
        self._folder, self._step = None, -1

    def _described(self) -> dict[str, object]:
        """What is said of a run beside its state."""
        if self._data is None:
            return dict(self._about)
        return {**self._about, "fingerprint": self._data.fingerprint}
