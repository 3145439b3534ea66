"""A small training loop: AdamW, averages, progress, a resume that changes no bit.

Everything random is a function of (seed, step) by the noise contract, so a checkpoint needs no
generator's state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cmsolvers import checks as check
from cmsolvers.training.batches import Batch, batch_at, torch_seed
from cmsolvers.training.checkpoints import (
    check_finite,
    checked_optimizer_state,
    describe_optimizer,
    optimizer_tensors,
    read_checkpoint,
    set_optimizer_state,
    write_checkpoint,
)
from cmsolvers.training.ema import EMA, update_averages
from cmsolvers.training.interrupts import Interrupts
from cmsolvers.training.training_settings import TrainingSettings

READ_EVERY = 50
"""Losses on a GPU are read every so many steps: reading one waits for all work on the device."""


class Trainer:
    """Runs `loss(batch)` down on a network.

    Args:
        network: trained in place.
        loss: `loss(batch: Batch) -> scalar`; it closes over the network and whatever else it needs.
        data: [n, ...] on the network's device.
        settings: the course of the run.
        averages: name -> EMA of the network; all are updated after every step, in one pass, and
            kept in checkpoints.
        decays: name -> mu(step) for averages whose rate changes on the way.
        about: what checkpoints say of the run; anything that JSON can hold.

    Attributes:
        step: steps done.
        history: the loss of every step, complete whenever `run` or `save` returns.

    Raises:
        TypeError, ValueError: arguments of the wrong kind; fewer samples than a batch.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Batch], Tensor],
        data: Tensor,
        settings: TrainingSettings,
        *,
        averages: Mapping[str, EMA[nn.Module]] | None = None,
        decays: Mapping[str, Callable[[int], float]] | None = None,
        about: Mapping[str, object] | None = None,
    ) -> None:
        self.network, self.loss = network, check.function("loss", loss)
        self.data, self.settings = check.state("data", data), settings
        self.averages, self.decays = dict(averages or {}), dict(decays or {})
        self.about = dict(about or {})
        self.step = 0
        self.history: list[float] = []
        self._unread: list[Tensor] = []  # losses of the last steps, where they were computed
        self._failed: Tensor | None = None  # 1.0 from the first loss on that is not finite
        self._window = 1 if data.device.type == "cpu" else READ_EVERY
        self._whole = True
        batch_at(data[: settings.batch_size], 0, 1, settings.batch_size, 0)
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def run(
        self,
        until: int | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int = 0,
        progress: bool = True,
        description: str = "training",
        position: int = 0,
    ) -> Self:
        """Train up to step `until` (None: to the end).

        Args:
            until: stop before this step.
            checkpoint: folder to write at the end, also when the run is interrupted: Ctrl-C lets
                the step that is under way end first, a second one does not (and then leaves the
                folder as it was). A state that is not finite is never written.
            every: write it also every so many steps; 0: only at the end.
            progress: show a bar.
            description: its label.
            position: line of the bar, where several are shown.

        Returns:
            The trainer itself.

        Raises:
            TypeError, ValueError: until or every is no int, or negative.
            FloatingPointError: the loss is not finite. Network, optimiser and `step` are left as
                they were before that step, and the checkpoint as it was last written. On a device
                it is noticed up to READ_EVERY steps later; averages may have moved on towards
                that network. Or weights to be saved are not finite.
        """
        every = check.count("every", every, least=0)
        end = self.settings.steps
        if until is not None:
            end = min(check.count("until", until, least=0), end)
        devices = [self.data.device] if self.data.device.type == "cuda" else []
        bar = tqdm(
            total=self.settings.steps,
            initial=self.step,
            desc=description,
            disable=not progress,
            mininterval=0.5,
            position=position,
            unit="step",
        )
        self.network.train()
        try:
            with bar, torch.random.fork_rng(devices=devices), Interrupts() as interrupts:
                while self.step < end and not interrupts.wanted:
                    self._advance()
                    bar.update()
                    if self.step % 50 == 0:
                        self._read()
                        bar.set_postfix_str(f"loss {self.history[-1]:.4g}", refresh=False)
                    if checkpoint is not None and every and self.step % every == 0:
                        self.save(checkpoint)
                self._read()
        except FloatingPointError:
            checkpoint = None  # the folder of an earlier step is worth more than this state
            raise
        finally:
            self.network.eval()
            if checkpoint is not None and self._whole:
                self.save(checkpoint)
        return self

    def _advance(self) -> None:
        settings, k = self.settings, self.step
        batch = batch_at(self.data, k, settings.steps, settings.batch_size, settings.seed)
        torch.manual_seed(torch_seed(k, settings.seed))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(k)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        # A copy: the loss may lie in memory that its owner uses again.
        value = loss.detach().reshape(()).clone()
        if self._window == 1:
            _require_finite(float(value), k)
        torch.autograd.backward(loss)
        if settings.clip > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self._whole = False
        self._update(value)
        rates = [self.decays.get(name) for name in self.averages]
        update_averages(
            self.averages.values(),
            self.network,
            [rate if rate is None else rate(k) for rate in rates],
        )
        self._unread.append(value)
        self.step += 1
        self._whole = True
        if len(self._unread) >= self._window:
            self._read()

    def _update(self, loss: Tensor) -> None:
        """The optimiser's step; on a device it holds still from the first bad loss on.

        Nothing is read for that: the fused kernels look at `found_inf`, as they do for
        torch.amp.GradScaler, and change nothing where it is 1.
        """
        if self._window == 1:
            self.optimizer.step()
            return
        failed = (~torch.isfinite(loss)).float()
        self._failed = failed if self._failed is None else torch.maximum(self._failed, failed)
        optimizer: Any = self.optimizer
        optimizer.found_inf = self._failed
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf

    def _read(self) -> None:
        """Read the losses that are still on the device; one that is not finite is an error."""
        if not self._unread:
            return
        values = torch.stack(self._unread).tolist()
        self._unread = []
        first = self.step - len(values)
        for k, value in enumerate(values, first):
            if not math.isfinite(value):
                self.step, self._failed = k, None  # where the optimiser stands
            _require_finite(value, k)
            self.history.append(value)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write network, averages, optimiser, losses and step to a checkpoint's folder.

        Raises:
            FloatingPointError: a loss, weight or entry of the optimiser is not finite; the
                checkpoint is left as it was.
        """
        self._read()
        groups = {
            "network": self.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "progress": {"history": torch.tensor(self.history, dtype=torch.float64)},
        }
        groups |= {f"average.{name}": ema.state_dict() for name, ema in self.averages.items()}
        modules = {"network": self.network}
        modules |= {f"average.{name}": ema.module for name, ema in self.averages.items()}
        check_finite(
            groups,
            {name: dict(m.named_buffers(remove_duplicate=False)) for name, m in modules.items()},
        )
        about = self.about | {"step": self.step, "settings": self._settings()}
        about |= {"optimizer": describe_optimizer(self.optimizer)}
        write_checkpoint(path, groups, about)

    def _settings(self) -> dict[str, object]:
        """The settings as JSON gives them back."""
        return asdict(self.settings) | {"betas": list(self.settings.betas)}

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Go on from a checkpoint written by a run with the same settings.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no checkpoint, or one of another run; the text names what differs.
        """
        groups, about = read_checkpoint(path)
        settings, wanted = about.get("settings"), self._settings()
        if not isinstance(settings, dict):
            raise ValueError(f"path must be a checkpoint of a training run; got {path}")
        for name in sorted({*wanted, *settings}):
            ours, theirs = wanted.get(name), settings.get(name)
            if ours != theirs:
                raise ValueError(
                    f"{path}: settings.{name} must be {ours} to resume; the checkpoint has {theirs}"
                )
        for name in self.about:
            if about.get(name) != self.about[name]:
                raise ValueError(
                    f"{path}: {name} must be {self.about[name]} to resume; "
                    f"the checkpoint has {about.get(name)}"
                )
        try:
            state = checked_optimizer_state(
                self.optimizer,
                groups.get("optimizer", {}),
                about.get("optimizer"),
                self.network,
            )
            self.network.load_state_dict(groups["network"])
            for name, ema in self.averages.items():
                ema.load_state_dict(groups[f"average.{name}"])
            set_optimizer_state(self.optimizer, state)
            self._unread, self._failed = [], None
            self.history = groups["progress"]["history"].tolist()
            self.step = check.count("step", about["step"], least=0)
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"path must be an undamaged checkpoint; {path}: {error}") from error
        return self


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss must stay finite; got {loss} at step {step}")
