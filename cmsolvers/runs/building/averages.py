"""Averages for sampling from plain settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from cmsolvers import checks as check
from cmsolvers.training.averages import EMA, power_decay
from cmsolvers.training.named_options import called_with, check_options, table_of


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
    if not isinstance(value, (list, tuple)):
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
