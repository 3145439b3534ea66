"""A whole training step as one CUDA graph: loss, backward, clipping, optimiser and averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.engine.nests import check_like, tensors_in, with_tensors
from cmsolvers.engine.run import keeping_programs
from cmsolvers.training.averages import EMA, check_averages, move_averages
from cmsolvers.training.step_arguments import (
    check_loss,
    checked_step,
    device_of,
    given_rates,
    rates_of,
)

StepLoss = Callable[[Any, Tensor], Tensor]
"""loss(batch, step): a scalar; step is an int64 tensor [1]."""


class CapturedStep:
    """A training step to be called again and again; made by `capture_step`.

    Attributes:
        step: the number of the step, int64 [1], that the loss is given.
        graph: the CUDA graph; None before the capture, on the CPU, and with graph=False.
        pool: of the graph's memory, for `capture_step(..., pool=)` of another step; None likewise.
    """

    def __init__(
        self,
        loss: StepLoss,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: object,
        clip: float,
        averages: Sequence[EMA[nn.Module]],
        warmup: int,
        pool: Any,
        graph: bool,
    ) -> None:
        self._loss, self._network, self._optimizer = loss, network, optimizer
        self._clip, self._averages, self._warmup = clip, averages, warmup
        self._device = device_of(network)
        self._captures = graph and self._device.type == "cuda"
        self._given_pool = pool
        slots = dict(tensors_in("batch", batch))
        for name, tensor in slots.items():
            if tensor.device != self._device:
                raise ValueError(
                    f"{name} must be on the network's device, {self._device}; got {tensor.device}"
                )
        # What a replay reads: written before each, never replaced.
        self._slots = {n: torch.empty_like(t).copy_(t.detach()) for n, t in slots.items()}
        self._batch = with_tensors("batch", batch, self._slots)
        self.step = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._weights = torch.zeros(len(averages), dtype=torch.float64, device=self._device)
        self._each_weight = self._weights.unbind()
        self._side_stream: torch.cuda.Stream | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the graph: the next calls warm up and capture anew.

        To be called after something that the graph reads was replaced by another tensor, as
        `optimizer.load_state_dict` does.

        Raises:
            TypeError, ValueError: the optimiser is no longer one that can be captured.
        """
        self.graph: torch.cuda.CUDAGraph | None = None
        self.pool: Any = None
        self._value: Tensor | None = None
        self._done = 0
        self._programs: object = None
        self._rates = rates_of(self._optimizer, self._device)

    def __call__(
        self, batch: object, step: int | Tensor, lr: float | Sequence[float] | Tensor | None = None
    ) -> Tensor:
        """One training step.

        Args:
            batch: with the same structure as the example. Tensors may have new values, the rest
                must be the same.
            step: the number that the loss is given: an int >= 0, or an int64 tensor of one entry on
                the device.
            lr: learning rate: a number or a tensor of one entry for all parameter groups, or a
                sequence of numbers, one per group. None: the one that the optimiser has.

        Returns:
            The loss before the step, [], on the device; a tensor of its own. Nothing waits for it.

        Raises:
            TypeError, ValueError: arguments that do not fit; nothing was done then.
            RuntimeError: the learning rate's tensor was replaced (see `reset`), or the step could
                not be captured; nothing was done then.
        """
        self._write(batch, step, lr, [1.0 - mu for mu in self._decays(step)])
        if not self._captures:
            value = self._run()
        elif self.graph is None and self._done < self._warmup:
            value = self._warm_up()
        else:
            if self.graph is None:
                self._capture()
            assert self.graph is not None and self._value is not None
            self.graph.replay()
            value = self._value
        self._done += 1
        for ema in self._averages:
            ema.steps += 1
        return value.clone()

    def _decays(self, step: int | Tensor) -> list[float]:
        """mu of each average for this step."""
        return [ema.next_decay() for ema in self._averages]

    def __repr__(self) -> str:
        how = "a graph" if self.graph is not None else "no graph"
        return (
            f"CapturedStep({type(self._network).__name__}, {type(self._optimizer).__name__}, "
            f"{len(self._averages)} averages, on {self._device}, {how})"
        )

    @torch.no_grad()
    def _write(
        self,
        batch: object,
        step: int | Tensor,
        lr: float | Sequence[float] | Tensor | None,
        weights: Sequence[float],
    ) -> None:
        """Put everything that changes where the graph reads it; checked before, all or nothing."""
        check_like(batch, self._batch, "batch")
        groups = self._optimizer.param_groups
        if len(groups) != len(self._rates) or any(
            group["lr"] is not rate for group, rate in zip(groups, self._rates, strict=True)
        ):
            raise RuntimeError(
                "optimizer must keep the tensors of its learning rate; they were replaced (by "
                "load_state_dict?): call reset() on the captured step"
            )
        number = checked_step(step, self._device)
        rates = given_rates(lr, len(self._rates), self._device)
        for name, tensor in tensors_in("batch", batch):
            self._slots[name].copy_(tensor)
        _set(self.step, number)
        for held, rate in zip(self._rates, rates, strict=True):
            if rate is not None:
                _set(held, rate)
        for held, weight in zip(self._each_weight, weights, strict=True):
            held.fill_(weight)  # the number travels with the launch: no copy to wait for

    def _run(self) -> Tensor:
        """The step itself, on what was written; the same code with a graph and without."""
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self._loss(self._batch, self.step)
            check_loss(loss)
            torch.autograd.backward(loss)
        if self._clip > 0.0:
            nn.utils.clip_grad_norm_(self._network.parameters(), self._clip)
        self._optimizer.step()
        move_averages(self._averages, self._network, self._weights)
        return loss.detach().reshape(())

    def _warm_up(self) -> Tensor:
        """A step on the stream of the capture: lazy set-up happens now, and it counts as a step."""
        stream, current = self._stream(), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            value = self._run()
        current.wait_stream(stream)
        return value

    def _capture(self) -> None:
        """Record the step. Nothing runs meanwhile, so network and optimiser stay as they are."""
        graph = torch.cuda.CUDAGraph()
        # Gradients of the warm-up must not be freed, nor used, by what is recorded.
        self._optimizer.zero_grad(set_to_none=True)
        try:
            with (
                torch.cuda.device(self._device),
                keeping_programs() as self._programs,
                torch.cuda.graph(graph, pool=self._given_pool, stream=self._stream()),
            ):
                self._value = self._run()
        except RuntimeError as error:
            self._value = None
            self._optimizer.zero_grad(set_to_none=True)
            raise RuntimeError(
                "the training step could not be captured; loss, network and optimiser must not "
                "wait for the device (.item(), .cpu(), a choice by a tensor's value) nor use other "
                f"streams: {error}"
            ) from error
        self.graph, self.pool = graph, graph.pool()

    def _stream(self) -> torch.cuda.Stream:
        """One for warm-ups and capture: what autograd set up on it stays right."""
        if self._side_stream is None:
            self._side_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return self._side_stream


def capture_step(
    loss: StepLoss,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    example_batch: object,
    *,
    clip: float = 0.0,
    averages: Iterable[EMA[nn.Module]] | Mapping[str, EMA[nn.Module]] = (),
    warmup: int = 3,
    pool: Any = None,
    graph: bool = True,
) -> CapturedStep:
    """Capture a training step as one CUDA graph, replayed with other data, step and learning rate.

    `step = capture_step(...)`, then `value = step(batch, k, lr)` for k = 0, 1, ...: loss, backward,
    clipping of the gradient, optimiser and averages, with the bits of the same step uncaptured. A
    replay is one launch, so that a small network is no longer bound by the time that launching
    takes. On the CPU, and with graph=False, every call runs the same code without a graph.

    The first `warmup` calls run uncaptured, on a stream of their own; they are steps like any
    other. The next one captures, and all later ones replay. What the graph reads stays where it is:
    parameters, buffers, the optimiser's state and averages may be changed in place (by
    `network.load_state_dict`), not replaced (by `optimizer.load_state_dict`, `.to`): call
    `step.reset()` then.

    Loss, network and optimiser must do the same launches in every step, and must not wait for the
    device. Python code in the loss runs while the step is captured, not in a replay: whatever
    changes from step to step must be a tensor of the batch, or be computed from `step`. Random
    numbers of torch (dropout) go on from replay to replay; `torch.manual_seed` before a call makes
    them a function of the step. Mixed precision by `torch.autocast` inside the loss works; a
    GradScaler does not, it waits.

    Args:
        loss: `loss(batch, step) -> scalar`. batch holds tensors of the step's own, to be read only;
            step is an int64 tensor [1] on the device, to be given to losses as `step=` or draw.
        network: trained in place, in the mode (train or eval) that it has.
        optimizer: made with capturable=True and a tensor as learning rate, such as
            `torch.optim.AdamW(network.parameters(), lr=torch.tensor(1e-3, device=...),
            fused=True, capturable=True)`.
        example_batch: a tensor, or tensors in dicts, lists and tuples, on the network's device;
            only shapes, layouts and dtypes matter.
        clip: largest norm of the gradient of the network's parameters, 0 for no limit.
        averages: EMAs of the network, or a mapping to them, moved in one pass after the optimiser,
            each by its own decay (a number or a function of its updates).
        warmup: uncaptured steps before the capture, at least 1. A DistributedDataParallel network
            needs 11.
        pool: `step.pool` of another captured step, to use the same memory for both; they must not
            run at the same time.
        graph: False never captures, to look for a mistake in the loss.

    Returns:
        `step(batch, k, lr)`, which returns the loss before the step as a tensor on the device.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, an optimiser that cannot be captured, a
            batch on another device, averages of another network.
    """
    check.function("loss", loss)
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module; got {check.describe(network)}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer; got {check.describe(optimizer)}"
        )
    mine = {id(p) for p in network.parameters()}
    if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer must train parameters of network; it has none of them")
    emas = list(averages.values() if isinstance(averages, Mapping) else averages)
    for place, ema in enumerate(emas):
        if not isinstance(ema, EMA):
            raise TypeError(f"averages[{place}] must be an EMA; got {check.describe(ema)}")
        device = device_of(ema.module, f"averages[{place}]")
        if device != device_of(network):
            raise ValueError(
                f"averages[{place}] must be on the network's device, {device_of(network)}; "
                f"got {device}"
            )
    check_averages(emas, network)
    return CapturedStep(
        loss,
        network,
        optimizer,
        example_batch,
        check.non_negative("clip", clip),
        emas,
        check.count("warmup", warmup),
        pool,
        check.flag("graph", graph),
    )


def _set(held: Tensor, value: float | Tensor) -> None:
    if isinstance(value, Tensor):
        held.copy_(value.detach().reshape(held.shape))
    else:
        held.fill_(value)
