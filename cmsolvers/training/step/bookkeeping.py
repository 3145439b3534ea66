"""The losses of a run, its skipped steps, and what monitors are told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.training.reports import Monitor, StepReport
from cmsolvers.training.step.audience import Audience
from cmsolvers.training.step.training_step import Done, TrainingStep

READ_EVERY = 50
"""Losses on a GPU are read every so many steps: reading one waits for all work on the device."""


class Books:
    """Counts steps, and reads their losses: at once on the CPU, every READ_EVERY steps on a GPU.

    Args:
        runner: of the steps.
        monitors: told of every step.

    Attributes:
        step: steps done.
        skipped: how many of them were skipped.
        history: their losses, as far as they were read.
        audience: the monitors.
        window: steps between reads.
    """

    def __init__(self, runner: TrainingStep, monitors: Sequence[Monitor]) -> None:
        self._runner = runner
        self.audience = Audience(monitors, runner.placement)
        self.step = self.skipped = 0
        self.history: list[float] = []
        self.window = READ_EVERY if runner.later else 1
        self._unread: list[Done] = []
        self._bad: list[tuple[int, float, str]] = []  # (step, loss, levels) of the last in a row

    def add(self, done: Done) -> None:
        """Count a step.

        Raises:
            FloatingPointError: as `read`.
        """
        self.step += 1
        self._unread.append(done)
        if len(self._unread) >= self.window:
            self.read()

    def read(self) -> None:
        """Read what is known of the steps since the last time.

        Raises:
            FloatingPointError: so many of them in a row were bad that the run has to end.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        rows = _read_rows(unread)
        most = self._runner.settings.max_bad_steps
        report = ""
        if self._runner.later:
            self._runner.not_counted(sum(bool(row[1]) for row in rows))
        for done, (loss, skipped, bad, norm) in zip(unread, rows, strict=True):
            self.history.append(loss)
            self.skipped += bool(bad)
            if bad:
                self._bad.append((done.step, loss, _levels(done.terms)))
                if len(self._bad) >= most and not report:
                    report = self._report()
            elif not skipped:
                self._bad = []
            self._tell_step(done, loss, bool(skipped), norm)
        if report:
            raise FloatingPointError(report)

    def _report(self) -> str:
        first, last = self._bad[0][0], self._bad[-1][0]
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        losses = ", ".join(f"{loss:.4g}" for _, loss, _ in self._bad[-3:])
        places = [levels for _, _, levels in self._bad if levels]
        where = f"; samples that were not finite had levels {places[-1]}" if places else ""
        return (
            f"loss and gradient must be finite; in {steps} they were not (loss {losses}), and the "
            f"run ends after max_bad_steps={self._runner.settings.max_bad_steps} in a row{where}. "
            "Weights and averages are as they were before; a lower lr, or clip, may help"
        )

    def _tell_step(self, done: Done, loss: float, skipped: bool, norm: float) -> None:
        if not self.audience:
            return
        placement = self._runner.placement
        terms = done.terms
        if terms is not None:
            # Rows of processes follow each other in the order of the global batch.
            terms = placement.gathered(terms.T.contiguous()).T.cpu()
        if placement.rank > 0:
            return
        levels, per_sample = (None, None) if terms is None else (terms[0], terms[1])
        norms = None if norm < 0 else norm
        report = StepReport(
            done.step, loss, done.lr, norms, done.seconds, skipped, levels, per_sample
        )
        self.tell(lambda monitor: monitor.stepped(report))

    def tell(self, what: Callable[[Monitor], None]) -> None:
        """Tell all monitors something, in the first process."""
        self.audience.tell(what, self.step)

    # --- in checkpoints -----------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The group of tensors that a checkpoint holds."""
        return {"progress": {"history": torch.tensor(self.history, dtype=torch.float64)}}

    def about(self) -> dict[str, object]:
        """The description that a checkpoint holds."""
        row = [[step, str(loss), levels] for step, loss, levels in self._bad]
        return {"step": self.step, "skipped": self.skipped, "bad_in_a_row": row}

    def checked(
        self,
        path: object,
        groups: Mapping[str, Mapping[str, Tensor]],
        about: Mapping[str, object],
        steps: int,
    ) -> Callable[[], None]:
        """What sets the books to those of a checkpoint, which was looked through.

        Raises:
            ValueError: something is missing or makes no sense.
        """
        try:
            history = groups["progress"]["history"].tolist()
            step = check.count("step", about["step"], least=0)
            skipped = check.count("skipped", about.get("skipped", 0), least=0)
            bad = [(int(k), float(loss), str(at)) for k, loss, at in _rows(about)]
            if len(history) != step:
                raise ValueError(f"there are {len(history)} losses of {step} steps")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path must be an undamaged checkpoint; {path}: {error}") from error
        if step > steps:
            raise ValueError(
                f"{path}: settings.steps must be at least the {step} steps that were done; "
                f"got {steps}"
            )

        def put() -> None:
            self.step, self.skipped, self.history, self._bad = step, skipped, history, bad
            self._unread = []

        return put


def _rows(about: Mapping[str, object]) -> list[list[Any]]:
    rows = about.get("bad_in_a_row", [])
    if not isinstance(rows, list):
        raise TypeError(f"bad_in_a_row must be a list; got {check.describe(rows)}")
    return rows


def _read_rows(unread: Sequence[Done]) -> list[Sequence[float]]:
    rows = [done.numbers for done in unread]
    waiting = [row for row in rows if isinstance(row, Tensor)]
    if waiting:
        read: list[Sequence[float]] = torch.stack(waiting).tolist()
        return read
    return [row for row in rows if not isinstance(row, Tensor)]


def _levels(terms: Tensor | None) -> str:
    """The levels of samples whose terms are not finite, in this process."""
    if terms is None:
        return ""
    levels = terms[0][~torch.isfinite(terms[1])].tolist()
    levels = [level for level in levels if math.isfinite(level)]
    return f"{min(levels):.4g} to {max(levels):.4g}" if levels else ""
