"""A training loop: micro-batches, averages, checkpoints, a resume that changes no bit.

Everything random is a function of (seed, step) by the noise contract, so a checkpoint needs no
generator's state.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cmsolvers import checks as check
from cmsolvers.training.averages import EMA, check_averages
from cmsolvers.training.checkpoints import RunFolder
from cmsolvers.training.data import TrainingData
from cmsolvers.training.interrupts import Interrupts
from cmsolvers.training.process_batches import ProcessBatches
from cmsolvers.training.reports import Monitor
from cmsolvers.training.saving import Saves
from cmsolvers.training.step.bookkeeping import Books
from cmsolvers.training.step.captured_training_step import CapturedTrainingStep, captures
from cmsolvers.training.step.optimizers import GivenOptimizer, Rates, Schedule
from cmsolvers.training.step.placement import Placement
from cmsolvers.training.step.training_step import Loss, TrainingStep
from cmsolvers.training.training_settings import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

Folder: TypeAlias = RunFolder | str | os.PathLike[str]


class Trainer:
    """Runs `loss(model, batch)` down on a network.

    A step is: the mean gradient over micro-batches and processes, clipping, the optimiser, the
    averages. A step whose loss or gradient is not finite anywhere is skipped everywhere, and
    counted. Under torchrun, or with an accelerator, `settings.batch_size` is that of all processes
    together, and each has its slice of the same batches with the same noise.

    Args:
        network: trained in place; a network or a module around one, such as `EDM(net)`.
        loss: `loss(model, batch: Batch)` -> a tensor [] or a `LossOutput`. `model` is the network,
            in DistributedDataParallel where there are several processes.
        data: samples [n, ...], a `TrainingData`, or batches of your own: a DataLoader or anything
            else that can be iterated again and again (see `user_batches`).
        settings: the course of the run.
        optimizer: over parameters of the network, or a function that makes one of them; None is
            AdamW with the settings' lr, betas and weight_decay. Its state is kept in checkpoints.
        schedule: schedule(step) -> factor of the learning rate (of each group of an optimiser of
            yours); None is the rise and the cosine of the settings. As a function of the step it
            needs no state.
        averages: name -> EMA of the network; all are updated after every step, in one pass, and
            kept in checkpoints.
        decays: name -> mu(step) for averages whose rate changes on the way.
        about: what checkpoints say of the run; anything that JSON can hold. A run is resumed with
            the same.
        monitors: told of every step, in the first process, but given to all of them; see `Monitor`
            and `PeriodicMonitor`.
        accelerator: of accelerate, for its device, DistributedDataParallel or FSDP2; None is the
            network's device, or under torchrun one that is made here.
        workers: processes that read data which are not in memory.
        capture: run steps as one CUDA graph (see `capture_step`), with the same bits: True, False,
            or "auto": where the loss says that it can be, by an attribute `capturable` that is
            True, and settings and optimiser allow. `batch.step` is then an int64 tensor [1], and
            Python code of the loss runs in the first few steps only; on the CPU in all of them.

    Attributes:
        step: steps done, skipped ones too.
        skipped: how many of them were skipped because something was not finite.
        history: the loss of every step; of a skipped one it may be NaN or infinite.

    Raises:
        TypeError, ValueError: arguments of the wrong kind; fewer samples than a batch, or a batch
            that processes and micro-batches cannot share.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        data: Tensor | TrainingData | Iterable[object],
        settings: TrainingSettings,
        *,
        optimizer: GivenOptimizer = None,
        schedule: Schedule | None = None,
        averages: Mapping[str, EMA[nn.Module]] | None = None,
        decays: Mapping[str, Callable[[int], float]] | None = None,
        about: Mapping[str, object] | None = None,
        monitors: Sequence[Monitor] = (),
        accelerator: Accelerator | None = None,
        workers: int = 0,
        capture: bool | str = "auto",
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module; got {check.describe(network)}")
        self.network, self.loss = network, check.function("loss", loss)
        self.settings, self.data = settings, data
        self.averages, self.decays = dict(averages or {}), dict(decays or {})
        self.about, self.monitors = dict(about or {}), list(monitors)
        for name in set(self.decays) - set(self.averages):
            raise ValueError(f"decays must be of averages; there is no average {name!r}")
        check_averages(list(self.averages.values()), network)
        before = dict(network.named_parameters())
        alone = accelerator is None and int(os.environ.get("WORLD_SIZE", "1")) == 1
        captured = captures(capture, self.loss, network, settings, optimizer, alone=alone)
        rates = Rates(optimizer, schedule, network, settings, capturable=captured)
        self.placement = Placement(accelerator, network, self.averages.values(), settings.precision)
        after = dict(network.named_parameters())
        rates.replace({p: after[name] for name, p in before.items()})
        self._batches = ProcessBatches(data, settings, self.placement, workers)
        self.optimizer = rates.optimizer
        self._step = (CapturedTrainingStep if captured else TrainingStep)(
            network,
            self.loss,
            settings,
            self.placement,
            rates,
            self.averages,
            self.decays,
            monitored=bool(self.monitors),
        )
        self._books = Books(self._step, self.monitors)
        self._saves = Saves(self._step, self._books, self.about, self._batches.known)
        self._stop = False

    @property
    def step(self) -> int:
        """Steps done, skipped ones too."""
        return self._books.step

    @property
    def skipped(self) -> int:
        """How many steps were skipped."""
        return self._books.skipped

    @property
    def history(self) -> list[float]:
        """The loss of every step."""
        return self._books.history

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.placement.rank

    @property
    def sharded(self) -> bool:
        """Whether each process holds a shard of every weight."""
        return self.placement.sharded

    def stop(self) -> None:
        """End the run after the step that is under way, from a monitor or another thread.

        `run` saves and returns. Of several processes one that asks is enough.
        """
        self._stop = True

    # --- the loop -----------------------------------------------------------------------------

    def run(
        self,
        until: int | None = None,
        *,
        folder: Folder | None = None,
        every: int = 0,
        progress: bool = True,
        description: str = "training",
        position: int = 0,
    ) -> Self:
        """Train up to step `until` (None: to the end).

        SIGINT, SIGTERM and SIGHUP let the step that is under way end, in all processes the same
        one; then a checkpoint is written, and the run left by KeyboardInterrupt, or SystemExit with
        status 143 (SIGTERM) or 129 (SIGHUP). A second signal does not wait. In a thread other than
        the main one signals are its business: see `stop`.

        A checkpoint that cannot be written on the way is a warning, and the last one stays.

        Args:
            until: stop before this step.
            folder: of the run, for checkpoints at the end, also when the run is interrupted. One
                that holds checkpoints must be resumed from first.
            every: write one also every so many steps; 0: only at the end.
            progress: show a bar.
            description: its label.
            position: line of the bar, where several are shown.

        Returns:
            The trainer itself.

        Raises:
            TypeError, ValueError: until or every is no int, or negative; a folder that another
                trainer uses, or with checkpoints of another run.
            FloatingPointError: loss or gradient were not finite in `settings.max_bad_steps` steps
                in a row. Network, optimiser and averages are as before these steps, and no further
                checkpoint is written. On a GPU it is noticed up to READ_EVERY steps later.
            OSError: the folder cannot be written before the first step, or at the end.
        """
        every = check.count("every", every, least=0)
        end = self.settings.steps
        if until is not None:
            end = min(check.count("until", until, least=0), end)
        place = folder if isinstance(folder, RunFolder) or folder is None else RunFolder(folder)
        cuda = [self.placement.device] if self.placement.device.type == "cuda" else []
        self._stop = False
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            if place is not None:
                stack.enter_context(self._saves.held(place))
            stack.enter_context(torch.random.fork_rng(devices=cuda))
            bar = stack.enter_context(self._bar(progress, description, position))
            self._books.audience.started(self)
            self.network.train()
            good = True
            try:
                self._steps(end, interrupts, bar, place, every)
            except FloatingPointError:
                good = False  # the checkpoint of an earlier step is worth more than this state
                raise
            except BaseException:
                good = self._step.whole and self.placement.world == 1
                raise
            finally:
                self.network.eval()
                try:
                    if good and place is not None:
                        self._saves.save_in(place)
                finally:
                    self._books.tell(lambda monitor: monitor.ended(self))
        return self

    def _bar(self, progress: bool, description: str, position: int) -> tqdm[object]:
        return tqdm(
            total=self.settings.steps,
            initial=self.step,
            desc=description,
            disable=not progress or self.placement.rank > 0,
            mininterval=0.5,
            position=position,
            unit="step",
        )

    def _steps(
        self,
        end: int,
        interrupts: Interrupts,
        bar: tqdm[object],
        place: RunFolder | None,
        every: int,
    ) -> None:
        def signals() -> list[float]:
            return [*interrupts.counts(), float(self._stop)]

        with self._batches.from_step(self.step) as batches:
            begun = time.perf_counter()
            while self.step < end:
                if self.placement.world == 1 and (interrupts.wanted or self._stop):
                    break
                done = self._step(next(batches), self.step, signals)
                now = time.perf_counter()
                done.seconds, begun = now - begun, now
                self._books.add(done)
                bar.update()
                last = self.step == self.settings.steps
                if self._books.audience.is_due(self.step, last):
                    self._books.read()
                    self._books.audience.reached(self, last)
                if self.step % 50 == 0:
                    self._books.read()
                    bar.set_postfix_str(f"loss {self.history[-1]:.4g}", refresh=False)
                if any(done.signals):
                    interrupts.agree(done.signals[:-1])
                    break
                if place is not None and every and self.step % every == 0:
                    self._saves.save_on_the_way(place)
            self._books.read()

    # --- checkpoints --------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Self:
        """Write a checkpoint folder; all processes must call, the first one writes.

        Raises:
            FloatingPointError: a weight, average or entry of the optimiser is not finite; what is
                at the path stays.
            OSError: it cannot be written.
        """
        self._saves.save(Path(path))
        return self

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Go on from a checkpoint folder of a run with the same data, network and settings.

        See `TrainingSettings` for those that may differ. The number of processes, the micro-batches
        and the kind of sharding may be others.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no checkpoint, a damaged one, or one of another run; the text names what
                differs. The trainer is left as it was.
        """
        self._saves.load(Path(path))
        self._step.replaced()
        return self

    def resume(self, folder: Folder) -> Self:
        """Go on from the newest valid checkpoint of a run's folder; `load` otherwise.

        Raises:
            FileNotFoundError: the folder holds no checkpoint.
            ValueError: as `load`; or all checkpoints are damaged.
        """
        self._saves.resume(folder if isinstance(folder, RunFolder) else RunFolder(folder))
        self._step.replaced()
        return self
