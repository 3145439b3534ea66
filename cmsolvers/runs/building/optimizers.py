"""Optimisers, learning rates and averages from plain settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from cmsolvers import checks as check
from cmsolvers.training.ema import EMA
from cmsolvers.training.named_options import (
    IMPORT,
    called_with,
    check_options,
    imported,
    known_name,
    option_names,
    table_of,
)
from cmsolvers.training.power_decay import power_decay

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
"""By name; any other is "import:package.module:Class"."""


def optimizer_of(value: object, network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """An optimiser from plain settings, of all parameters that have a gradient.

    It is fused where its class can be, which no number depends on but by rounding.

    Args:
        value: a name, or a table with the options of its class, such as
            {name = "adamw", betas = [0.9, 0.99], weight_decay = 0.01}.
        network: whose parameters.
        lr: the learning rate to begin with.

    Raises:
        ImportError, TypeError, ValueError: an unknown name or option; nothing to train.
    """
    name, options = table_of("optimizer", value)
    if name.startswith(IMPORT):
        kind: Any = imported("optimizer", name)
    else:
        kind = OPTIMIZERS[known_name("optimizer", name, OPTIMIZERS)]
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("network must have parameters that are trained; got none")
    known = [option for option in option_names(kind) if option not in ("params", "lr")]
    kinds = [p.kind for p in inspect.signature(kind).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        check_options(f"optimizer {name}", options, known)
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    if "fused" in known and not given.get("foreach"):
        given.setdefault("fused", True)
    try:
        made = kind(parameters, lr=check.positive("lr", lr), **given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"optimizer {name}: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer {name} must be a torch.optim.Optimizer; got {check.describe(made)}"
        )
    return made


Schedule: TypeAlias = Callable[[int], float]
"""Learning rate of step k, counted from 0."""


@dataclass(frozen=True)
class Rise:
    """A schedule whose rate rises in equal steps over the first `rise` steps of the run.

    Args:
        lr: the peak.
        total: training steps in all.
        warmup: share of the steps in which the rate rises, in [0, 1), or their number from 1 on.

    Raises:
        TypeError, ValueError: a number of the wrong kind or out of range.
    """

    lr: float
    total: int
    warmup: float = 0.05

    def __post_init__(self) -> None:
        check.positive("lr", self.lr)
        check.count("total", self.total)
        check.non_negative("warmup", self.warmup)

    @property
    def rise(self) -> int:
        """In how many steps the rate rises; at least 1, the whole of it."""
        steps = self.warmup if self.warmup >= 1 else self.warmup * self.total
        return max(1, round(steps))

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.rise:
            return self.lr * (step + 1) / self.rise
        return self.lr * self.share(step)

    def share(self, step: int) -> float:
        """Of the peak, after the rise."""
        return 1.0

    def progress(self, step: int) -> float:
        """How far a step is from the end of the rise to the end of the run, in [0, 1]."""
        return min(1.0, (step - self.rise) / max(1, self.total - self.rise))


class Constant(Rise):
    """The peak to the end."""


@dataclass(frozen=True)
class Cosine(Rise):
    """Half a cosine from the peak down to `last` times the peak."""

    last: float = 0.0

    def share(self, step: int) -> float:
        fallen = 0.5 * (1.0 + math.cos(math.pi * self.progress(step)))
        return self.last + (1.0 - self.last) * fallen


@dataclass(frozen=True)
class Linear(Rise):
    """A line from the peak down to `last` times the peak."""

    last: float = 0.0

    def share(self, step: int) -> float:
        return 1.0 + (self.last - 1.0) * self.progress(step)


@dataclass(frozen=True)
class InverseSquareRoot(Rise):
    """The peak up to step `reference`, then the peak times sqrt(reference / step).

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
        (2024), eq. 67: lr / sqrt(max(t / t_ref, 1)).
    """

    reference: int = 70_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check.count("reference", self.reference)

    def share(self, step: int) -> float:
        return 1.0 / math.sqrt(max(step / self.reference, 1.0))


RATES: dict[str, type[Rise]] = {
    "constant": Constant,
    "cosine": Cosine,
    "inverse_sqrt": InverseSquareRoot,
    "linear": Linear,
}
"""Schedules by name."""


def schedule_of(value: object, lr: float, total: int) -> Schedule:
    """A learning rate as a function of the step.

    Args:
        value: "constant", "cosine", "linear" or "inverse_sqrt", or a table with `warmup` (a share
            of the run below 1, or a number of steps), `last` (of "cosine" and "linear", over the
            peak) and `reference` (a step, of "inverse_sqrt"); or "import:package.module:function",
            called with lr, total and the table's options.
        lr: the peak.
        total: training steps in all.

    Raises:
        ImportError, TypeError, ValueError: an unknown name or option, a number out of range.
    """
    name, options = table_of("schedule", value)
    if name.startswith(IMPORT):
        made = imported("schedule", name)
    else:
        made = RATES[known_name("schedule", name, RATES)]
        known = [known for known in option_names(made) if known not in ("lr", "total")]
        check_options(f"schedule {name}", options, known)
    found: Schedule = called_with(f"schedule {name}", made, {"lr": lr, "total": total, **options})
    return check.function("schedule", found)


def averages_of(
    value: Sequence[object] | None, module: nn.Module, total: int
) -> dict[str, EMA[nn.Module]]:
    """Averages for sampling, by name.

    Args:
        value: a list of tables {name = "ema", decay = 0.999, warmup = true} or
            {name = "wide", sigma_rel = 0.1} (a power-function profile); None is one with the name
            "ema", over a tenth of the run and at most 1,000 steps.
        module: what the trainer is given, the network or the model around it.
        total: training steps in all.

    Raises:
        TypeError, ValueError: a name twice or that is none, options that do not fit.
    """
    if value is None:
        decay = min(0.999, 1.0 - 1.0 / max(2.0, 0.1 * check.count("total", total)))
        value = [{"name": "ema", "decay": decay, "warmup": True}]
    if not isinstance(value, Iterable) or isinstance(value, (str, Mapping)):
        raise TypeError(f"averages must be a list of tables; got {check.describe(value)}")
    found: dict[str, EMA[nn.Module]] = {}
    for entry in value:
        name, options = table_of("averages", entry)
        if name in found or name in ("target", "network") or not name.isidentifier():
            raise ValueError(
                "averages must have different names, of letters and digits, other than 'target' "
                f"and 'network'; got {name!r}"
            )
        found[name] = called_with(
            f"averages {name}", lambda **given: _average(module, **given), _known(name, options)
        )
    return found


def _known(name: str, options: Mapping[str, object]) -> Mapping[str, object]:
    check_options(f"averages {name}", options, ("decay", "sigma_rel", "warmup"))
    if ("decay" in options) is ("sigma_rel" in options):
        raise ValueError(f"averages {name} must have either decay or sigma_rel; got {options}")
    return options


def _average(
    module: nn.Module,
    decay: float | None = None,
    sigma_rel: float | None = None,
    warmup: bool = False,
) -> EMA[nn.Module]:
    if sigma_rel is not None:
        return EMA(module, power_decay(sigma_rel), warmup=warmup)
    assert decay is not None
    return EMA(module, decay, warmup=warmup)
