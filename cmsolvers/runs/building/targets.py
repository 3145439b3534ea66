"""What stands on the other side of a loss: the model itself, or an average of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from cmsolvers.denoisers import FlowMap, Preconditioned
from cmsolvers.losses import SquareRootPairs
from cmsolvers.losses.times.curricula import cm_discretization, cm_ema_rate
from cmsolvers.training.averages import EMA
from cmsolvers.training.model_wrappers import Function
from cmsolvers.training.named_options import called_with, known_name, table_of
from cmsolvers.training.spec import Spec

TARGET = "target"
"""Name of the average among the trainer's."""


@dataclass(frozen=True)
class Target:
    """An average as the target of a loss.

    Attributes:
        average: to be given to the trainer under the name "target".
        function: the model around it, for the loss.
        decay: mu(step), where it changes on the way: the trainer's `decays`.
    """

    average: EMA[nn.Module]
    function: Function
    decay: Callable[[int], float] | None = None


@dataclass(frozen=True)
class ConsistencyDecay:
    """mu(k) = exp(s0 ln mu0 / (N(k) - 1)), N(k) the levels of consistency training at step k.

    Args:
        total: training steps in all.
        s0: N at the start.
        s1: N - 1 at the end.
        mu0: of s0 levels.

    Source: Song et al., "Consistency Models" (2023), section 6 and appendix C.
    """

    total: int
    s0: int = 2
    s1: int = 150
    mu0: float = 0.95

    def __post_init__(self) -> None:
        self(0)

    def __call__(self, step: int) -> float:
        """mu at a training step."""
        levels = cm_discretization(min(step, self.total), self.total, self.s0, self.s1)
        return cm_ema_rate(levels, self.s0, self.mu0)


def target_of(
    value: object, module: nn.Module, spec: Spec, total: int, times: object = None
) -> Target | None:
    """The target of a loss from plain settings.

    Args:
        value: "self"; "ema", with decay 0.95; {name = "ema", decay = 0.99}; or
            {name = "ema", curriculum = "cm"} with mu0, s0 and s1, those of `times` where they are
            not given.
        module: what the trainer is given, the network or the model around it.
        spec: of the model.
        total: training steps in all.
        times: the loss's distribution of levels.

    Returns:
        None for "self". The average is in training mode, so that dropout falls on it as it falls on
        the model.

    Raises:
        TypeError, ValueError: an unknown name, options that do not fit.
    """
    name, options = table_of("target", value)
    if known_name("target", name, ("self", "ema")) == "self":
        called_with("target self", lambda: None, options)
        return None
    if "curriculum" not in options:
        decay: Callable[[int], float] | None = None
        rate = called_with("target ema", lambda decay=0.95: decay, options)
    else:
        decay = _curriculum(dict(options), total, times)
        rate = decay(0)
    average = EMA(module, rate)
    average.module.train()
    inner: Any = average.module
    around = inner if isinstance(inner, (FlowMap, Preconditioned)) else spec.wrap(inner)
    return Target(average, around, decay)


def _curriculum(options: dict[str, object], total: int, times: object) -> ConsistencyDecay:
    known_name("target.curriculum", options.pop("curriculum"), ("cm",))
    if isinstance(times, SquareRootPairs):
        options = {"s0": times.s0, "s1": times.s1} | options
    found: ConsistencyDecay = called_with(
        "target ema",
        lambda s0=2, s1=150, mu0=0.95: ConsistencyDecay(total, s0, s1, mu0),
        options,
    )
    return found
