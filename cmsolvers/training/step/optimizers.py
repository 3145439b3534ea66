"""The optimiser of a training: AdamW, one that was given, or what a factory makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cmsolvers import checks as check
from cmsolvers.training.training_settings import TrainingSettings

Optimizer: TypeAlias = torch.optim.Optimizer
GivenOptimizer: TypeAlias = Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None
"""An optimiser over parameters of the network, a function that makes one, or None: AdamW."""
Schedule: TypeAlias = Callable[[int], float]
"""schedule(step) -> factor of the learning rate, >= 0, of step 0, 1, ..."""


class Rates:
    """The optimiser, and the learning rate of each step as a function of the step alone.

    Args:
        given: see `GivenOptimizer`. A factory gets the parameters that have a gradient.
        schedule: factor of each group's learning rate; None is the rise and the cosine of the
            settings.
        network: as it lies on its device, before it is sharded.
        settings: of the run.
        capturable: make AdamW one that a CUDA graph can hold.

    Attributes:
        optimizer: the optimiser.
        parameters: what it trains, in its order.
        holds_still: whether its kernels do nothing where `found_inf` is 1, so that a bad step
            needs no look at the device.

    Raises:
        TypeError, ValueError: no optimiser, or one of other parameters.
    """

    def __init__(
        self,
        given: GivenOptimizer,
        schedule: Schedule | None,
        network: nn.Module,
        settings: TrainingSettings,
        *,
        capturable: bool = False,
    ) -> None:
        self._settings = settings
        first = next(network.parameters(), torch.zeros(0))
        self._narrow = first.device.type == "cuda"
        self._schedule = check.optional_function("schedule", schedule)
        if isinstance(given, Optimizer):
            self.optimizer = given
        elif given is None:
            rate: float | Tensor = settings.lr
            if capturable:  # a graph reads it from a tensor, on CUDA of float32
                dtype = torch.float32 if self._narrow else torch.float64
                rate = torch.tensor(rate, dtype=dtype, device=first.device)
            self.optimizer = torch.optim.AdamW(
                network.parameters(),
                lr=rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                fused=True,
                capturable=capturable,
            )
        else:
            make = check.function("optimizer", given)
            made: object = make(p for p in network.parameters() if p.requires_grad)
            if not isinstance(made, Optimizer):
                raise TypeError(
                    "optimizer must be a torch.optim.Optimizer or make one of parameters; "
                    f"it made {check.describe(made)}"
                )
            self.optimizer = made
        self._check(network)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        if given is None:
            self._peaks = [settings.lr]  # which a tensor rounds
        self.holds_still = getattr(self.optimizer, "_step_supports_amp_scaling", False) is True

    def _check(self, network: nn.Module) -> None:
        names = {id(p): name for name, p in network.named_parameters()}
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        strange = sum(id(p) not in names for p in trained)
        if strange or not trained:
            raise ValueError(
                "optimizer must train parameters of network, which is what checkpoints hold; "
                f"{strange} of its {len(trained)} are not"
            )

    def replace(self, others: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Train other parameters in the place of these: their shards.

        Raises:
            ValueError: the optimiser has a state already, which is of the whole parameters.
        """
        if all(others[p] is p for p in self.parameters):
            return
        if self.optimizer.state:
            raise ValueError("optimizer must be new where parameters are sharded; it has a state")
        for group in self.optimizer.param_groups:
            group["params"] = [others[p] for p in group["params"]]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def set(self, step: int) -> float:
        """Set every group's learning rate for a step; returns that of the first."""
        factor = None
        if self._schedule is not None:
            factor = check.non_negative("schedule(step)", self._schedule(step))
        first = 0.0
        for place, (group, peak) in enumerate(
            zip(self.optimizer.param_groups, self._peaks, strict=True)
        ):
            rate = self._settings.rate(step, peak) if factor is None else factor * peak
            if self._narrow:  # so that captured steps have the same
                rate = check.as_float32(rate)
            if place == 0:
                first = rate
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return first

    def gradients(self) -> list[Tensor]:
        """Those that the parameters have."""
        return [p.grad for p in self.parameters if p.grad is not None]
