"""Optimisers from plain settings."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from cmsolvers import checks as check
from cmsolvers.training.named_options import (
    IMPORT,
    check_options,
    imported,
    known_name,
    option_names,
    table_of,
)

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
