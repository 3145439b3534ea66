"""A training's step as one CUDA graph, with the decision about bad steps inside of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.training.averages import move_averages
from cmsolvers.training.captured_step import CapturedStep
from cmsolvers.training.data import Batch, torch_seed
from cmsolvers.training.step.micro_batches import joined, seed_generators, unpacked
from cmsolvers.training.step.training_step import Done, Signals, TrainingStep
from cmsolvers.training.training_settings import TrainingSettings

WARMUP = 3
"""Steps before the capture."""


def captures(
    capture: bool | str,
    loss: Callable[..., object],
    network: nn.Module,
    settings: TrainingSettings,
    optimizer: object,
    *,
    alone: bool,
) -> bool:
    """Whether steps are captured.

    Args:
        capture: True, False or "auto".
        loss: of the run; "auto" asks for its attribute `capturable`.
        network: of the run.
        settings: of the run.
        optimizer: that was given, if any.
        alone: whether there is one process, without an accelerator.

    Raises:
        TypeError: capture is something else.
        ValueError: capture is True, and something is in the way; the text names it.
    """
    if capture is False:
        return False
    if capture is not True and capture != "auto":
        raise TypeError(f'capture must be True, False or "auto"; got {check.describe(capture)}')
    groups = getattr(optimizer, "param_groups", [])
    ready = optimizer is None or (
        bool(groups)
        and all(g.get("capturable") is True and isinstance(g["lr"], Tensor) for g in groups)
        and getattr(optimizer, "_step_supports_amp_scaling", False) is True
    )
    ways = {
        "one process without an accelerator": alone,
        "settings.accumulate=1": settings.accumulate == 1,
        'settings.precision "no" or "bf16"': settings.precision != "fp16",
        "an optimizer with fused=True, capturable=True and a tensor as lr": ready,
    }
    missing = [way for way, there in ways.items() if not there]
    if capture is True:
        if missing:
            raise ValueError(f"capture must be False or have {'; '.join(missing)}")
        return True
    first = next(network.parameters(), None)
    cuda = first is not None and first.device.type == "cuda"
    return cuda and not missing and getattr(loss, "capturable", False) is True


class CapturedTrainingStep(TrainingStep):
    """`TrainingStep` by way of a graph; captured anew after `replaced`."""

    _captured: GuardedStep | None = None

    def __call__(self, batch: Batch, k: int, signals: Signals) -> Done:
        """One step on a batch."""
        tensors = {"x0": batch.x0, "index": batch.index}
        if batch.labels is not None:
            tensors["labels"] = batch.labels
        self.later = True
        if self._captured is None:
            self._captured = GuardedStep(self, tensors, batch.total)
        rate = self.rates.set(k)
        seed_generators(torch_seed(k, self.settings.seed), self.placement.device)
        self.whole = False
        numbers = self._captured(tensors, k)
        self.whole = True
        terms = self._captured.terms
        return Done(k, rate, numbers, None if terms is None else terms.clone(), ())

    def replaced(self) -> None:
        """Forget the graph, which reads tensors that are no longer used."""
        self._captured = None


class GuardedStep(CapturedStep):
    """The captured step, which holds still where loss or gradient are not finite."""

    def __init__(self, step: TrainingStep, batch: Mapping[str, Tensor], total: int) -> None:
        self._owner, self._total = step, total
        self.terms: Tensor | None = None
        super().__init__(
            lambda *_: torch.zeros(()),
            step.network,
            step.rates.optimizer,
            dict(batch),
            step.settings.clip,
            list(step.averages.values()),
            WARMUP,
            None,
            True,
        )

    def _decays(self, step: int | Tensor) -> list[float]:
        assert isinstance(step, int)
        given = self._owner.given(step)
        return [ema.next_decay(mu) for ema, mu in zip(self._averages, given, strict=True)]

    def _run(self) -> Tensor:
        owner, held = self._owner, self._batch
        assert isinstance(held, dict)
        owner.buffers.keep()
        self._optimizer.zero_grad(set_to_none=True)
        index = held["index"]
        key = noise.key(owner.settings.seed, len(index), ids=index, device=index.device)
        number: Any = self.step  # a tensor, so that a replay reads another one
        batch = Batch(held["x0"], index, key, number, self._total, held.get("labels"))
        with torch.enable_grad():
            with owner.precision.around():
                loss, terms = unpacked(owner.loss(owner.placement.model, batch))
            torch.autograd.backward(loss)
        self.terms = joined([terms])
        found, norm = owner.judged()
        skipped = ((~torch.isfinite(loss.detach())) | (found.reshape(()) > 0)).float()
        owner.buffers.restore(skipped)
        optimizer: Any = self._optimizer
        optimizer.found_inf = skipped
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
        move_averages(self._averages, self._network, self._weights * (1.0 - skipped))
        norm = torch.full_like(skipped, -1.0) if norm is None else norm
        rows = [loss.detach(), skipped, skipped, norm]
        return torch.stack([row.double().reshape(()) for row in rows])
