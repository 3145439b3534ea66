"""One training step: loss, mean gradient, clipping, the decision, optimiser, averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers.training.averages import EMA, move_averages, update_averages
from cmsolvers.training.data import Batch, torch_seed
from cmsolvers.training.step.kept_buffers import KeptBuffers
from cmsolvers.training.step.micro_batches import (
    Terms,
    joined,
    micro_batches,
    seed_generators,
    unpacked,
)
from cmsolvers.training.step.optimizers import Rates
from cmsolvers.training.step.placement import Placement, local, whole
from cmsolvers.training.step.precision import Precision
from cmsolvers.training.training_settings import TrainingSettings

Loss = Callable[[nn.Module, Batch], object]
"""loss(model, batch): a tensor [] or a LossOutput."""
Signals = Callable[[], Sequence[float]]


@dataclass
class Done:
    """What is known of a step, before anything on a device was read.

    Attributes:
        step: its number.
        lr: learning rate of the first group.
        numbers: (loss, skipped, bad, gradient's norm or -1), the same in all processes: floats, or
            a float64 tensor [4] on a device. Skipped steps that are not bad are those in which
            float16 overflowed.
        terms: levels and terms of the loss of this process, float64 [2, B / world].
        signals: what the processes were sent, summed; empty where there is one process.
        seconds: that it took.
    """

    step: int
    lr: float
    numbers: Sequence[float] | Tensor
    terms: Tensor | None
    signals: Sequence[float]
    seconds: float = 0.0


class TrainingStep:
    """Runs steps; what a step does to network, optimiser and averages is all or nothing.

    A step whose loss or gradient is not finite, in any process and micro-batch, changes nothing. On
    a device nothing is read to find out, where the optimiser's kernels look at `found_inf` as they
    do for `torch.amp.GradScaler`, and change nothing where it is 1.

    Args:
        network: trained in place.
        loss: see `Loss`.
        settings: of the run.
        placement: where it runs.
        rates: the optimiser.
        averages: moved after the optimiser.
        decays: mu(step) of averages whose rate changes on the way.
        monitored: whether norms of gradients are wanted.

    Attributes:
        later: whether numbers of steps stay on the device.
        whole: False in a step that something broke off.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        settings: TrainingSettings,
        placement: Placement,
        rates: Rates,
        averages: Mapping[str, EMA[nn.Module]],
        decays: Mapping[str, Callable[[int], float]],
        *,
        monitored: bool,
    ) -> None:
        self.network, self.loss, self.settings = network, loss, settings
        self.placement, self.rates = placement, rates
        self.averages, self.decays = averages, decays
        self.precision = Precision(settings.precision, placement.device)
        self.later = placement.device.type == "cuda" and rates.holds_still
        self.whole = True
        self._monitored = monitored
        self.buffers = KeptBuffers(network)
        self._weights = torch.zeros(len(averages), dtype=torch.float64, device=placement.device)
        self._sent = SentSignals()

    def __call__(self, batch: Batch, k: int, signals: Signals) -> Done:
        """One step on this process's share of a batch.

        Args:
            batch: the share.
            k: number of the step.
            signals: numbers to be summed over the processes, asked for when they are.
        """
        rate = self.rates.set(k)
        self.buffers.keep()
        self.rates.optimizer.zero_grad(set_to_none=True)
        loss, terms = self._gradients(batch, k)
        numbers, sent = (self._later if self.later else self._now)(loss, k, signals)
        return Done(k, rate, numbers, joined(terms), sent)

    def _gradients(self, batch: Batch, k: int) -> tuple[Tensor, list[Terms | None]]:
        """The mean loss of the micro-batches, and its gradient in the parameters."""
        count, placement = self.settings.accumulate, self.placement
        values: list[Tensor] = []
        terms: list[Terms | None] = []
        seed = torch_seed(k, self.settings.seed)
        for place, part in enumerate(micro_batches(batch, count)):
            # Dropout of other processes and micro-batches is another one.
            number = placement.rank * count + place
            seed_generators((seed + number) % 2**63, placement.device)
            with placement.part(place == count - 1):
                with self.precision.around():
                    loss, found = unpacked(self.loss(placement.model, part))
                # A copy: the loss may lie in memory that its owner uses again.
                values.append(loss.detach().clone())
                terms.append(found)
                if count > 1:
                    loss = loss / count
                if self.precision.scale is not None:
                    loss = loss * self.precision.scale
                torch.autograd.backward(loss)
        mean = values[0] if count == 1 else torch.stack(values).mean()
        return mean, terms

    def judged(self) -> tuple[Tensor, Tensor | None]:
        """(whether a gradient is not finite, its norm), after unscaling and clipping."""
        clip, gradients = self.settings.clip, self.rates.gradients()
        found = norm = None
        if self.precision.scale is not None or not clip:
            found = self.precision.unscale([local(g) for g in gradients])
        if clip or self._monitored:
            total = nn.utils.get_total_norm(gradients)
            norm = whole(total)
            if clip:
                nn.utils.clip_grads_with_norm_(self.rates.parameters, clip, total)
        if found is None:
            assert norm is not None
            found = (~torch.isfinite(norm)).float()
        return found, norm

    # --- with a look at every step ------------------------------------------------------------

    def _now(
        self, loss: Tensor, k: int, signals: Signals
    ) -> tuple[Sequence[float], Sequence[float]]:
        found, norm = self.judged()
        value, world = float(loss), self.placement.world
        wrong, overflow = float(not math.isfinite(value)), float(found)
        sent: Sequence[float] = ()
        if world > 1:
            rows = [value / world, wrong, overflow, *signals()]
            shared = torch.tensor(rows, dtype=torch.float64, device=self.placement.device)
            value, wrong, overflow, *sent = self.placement.sum(shared).tolist()
        scale = self.precision.scale
        skipped = bool(wrong or overflow)
        bad = bool(wrong) or (skipped and (scale is None or float(scale) <= 1.0))
        self.precision.update(found.fill_(float(overflow > 0)))
        if skipped:
            self.buffers.restore()
        else:
            self.whole = False
            self.rates.optimizer.step()
            update_averages(self.averages.values(), self.network, self.given(k))
            self.whole = True
        return (value, skipped, bad, -1.0 if norm is None else float(norm)), sent

    def given(self, k: int) -> list[float | None]:
        """mu of averages whose rate is a function of the step."""
        rates = [self.decays.get(name) for name in self.averages]
        return [rate if rate is None else rate(k) for rate in rates]

    # --- without one --------------------------------------------------------------------------

    def _later(self, loss: Tensor, k: int, signals: Signals) -> tuple[Tensor, Sequence[float]]:
        found, norm = self.judged()
        wrong, value = (~torch.isfinite(loss)).double(), loss.double()
        overflow = found.double().reshape(())
        sent: Sequence[float] = ()
        if self.placement.world > 1:
            rows = torch.stack([value / self.placement.world, wrong, overflow])
            numbers = signals()
            more = torch.zeros(len(numbers), dtype=torch.float64, device=loss.device)
            for slot, number in zip(more.unbind(), numbers, strict=True):
                slot.fill_(number)  # travels with the launch: no copy to wait for
            shared = self.placement.sum(torch.cat([rows, more]))
            value, wrong, overflow = shared[:3].unbind()
            sent = self._sent.exchanged(shared[3:])
        skipped = ((wrong + overflow) > 0).float()
        bad, scale = skipped, self.precision.scale
        if scale is not None:
            bad = torch.maximum((wrong > 0).float(), skipped * (scale <= 1.0))
            self.precision.update((overflow > 0).float())
        self.buffers.restore(skipped)  # before averages read them
        self._move(skipped, k)
        norm = torch.full_like(skipped, -1.0) if norm is None else norm
        return torch.stack([value, skipped.double(), bad.double(), norm.double()]), sent

    def _move(self, skipped: Tensor, k: int) -> None:
        """The optimiser's step and the averages', which hold still where `skipped` is 1."""
        optimizer: Any = self.rates.optimizer
        self.whole = False
        optimizer.found_inf = skipped
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
        emas = list(self.averages.values())
        if emas:
            for slot, ema, mu in zip(self._weights.unbind(), emas, self.given(k), strict=True):
                slot.fill_(1.0 - ema.next_decay(mu))
            move_averages(emas, self.network, self._weights * (1.0 - skipped))
            for ema in emas:
                ema.steps += 1
        self.whole = True

    def replaced(self) -> None:
        """The optimiser's tensors are others now: those of a checkpoint."""

    def not_counted(self, steps: int) -> None:
        """Take back that averages counted steps that were skipped, once that is known.

        Until then a mu that is a function of the number of updates counts them too.
        """
        for ema in self.averages.values():
            ema.steps -= steps


class SentSignals:
    """Signals of other processes, known two steps late: reading them never waits for this step."""

    LAG = 2

    def __init__(self) -> None:
        self._under_way: list[tuple[Tensor, torch.cuda.Event]] = []

    def exchanged(self, sums: Tensor) -> Sequence[float]:
        """What was summed two steps ago; the same step in all processes."""
        held = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
        held.copy_(sums, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._under_way.append((held, event))
        if len(self._under_way) <= self.LAG:
            return [0.0] * len(sums)
        before, event = self._under_way.pop(0)
        event.synchronize()
        numbers: list[float] = before.tolist()
        return numbers
