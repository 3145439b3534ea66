"""Rows check themselves: what a step makes of constant data, and of its spread."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from cmsolvers.engine.forms import Form, Symbol, Weight
from cmsolvers.engine.symbols import Ask, Noise, Past, State, TracedStep
from cmsolvers.processes.coordinates import KARRAS, Coordinates

_TOLERANCE = 1e-10
_ROUNDING = 2.0**-46  # of weights that cancel
_SMALLEST, _LARGEST = 1e-50, 1e50  # rows hold products of ratios of levels


def check_row(
    row: Form, step: TracedStep, to: float, keeps_spread: bool = True, path: Coordinates = KARRAS
) -> None:
    """Check a row on a straight path by what it makes of constant data.

    With x = alpha D + sigma z and constant D, the row must hold alpha of `to` times the data, and
    the spread must be sigma of `to` where `keeps_spread`.

    Raises:
        ArithmeticError: it does not.
    """
    weights = {symbol: _number(w) for symbol, w in row.terms.items()}
    wanted = path.alpha(to)
    data = [_data(symbol, step, path) * w for symbol, w in weights.items()]
    size, total = math.fsum(map(abs, data)), math.fsum(data)
    if not abs(total - wanted) <= _TOLERANCE * size:
        raise ArithmeticError(
            f"weights must sum to {wanted:g} for constant D; {row} gives {total:.10g}"
        )
    if not keeps_spread:
        return
    carried = [_spread(symbol, step, path) * w for symbol, w in weights.items()]
    drawn = [w for symbol, w in weights.items() if isinstance(symbol, Noise)]
    spread, right = math.hypot(math.fsum(carried), *drawn), path.sigma(to)
    allowed = _TOLERANCE * (math.fsum(map(abs, carried)) + right) + _ROUNDING * size * step.start
    ratio = path.ratio(step.start)
    if not path.karras and math.isfinite(ratio):  # it is rounded where little of the data is left
        allowed += _ROUNDING * ratio * right
    if not abs(spread - right) <= allowed:
        raise ArithmeticError(
            f"the spread must be {right:.6g}; {row} from {step.start:.6g} gives {spread:.6g}"
        )


def settle(row: Form, step: TracedStep, to: float, path: Coordinates = KARRAS) -> Form:
    """A row on a straight path without fresh noise, its weight of x made exact.

    That weight is known: with the slopes of earlier steps it carries the spread of `to`. A formula
    of several stages arrives at it by cancellation, which costs digits where a step is long.
    """
    if not path.straight or any(isinstance(s, Noise) or _carried(s) for s in row.terms):
        return row
    slopes = [-_number(w) for s, w in row.terms.items() if isinstance(s, Past) and s.slope]
    return Form({**row.terms, step.x: math.fsum((to, *slopes)) / step.start})


def checked_row(
    row: Form, step: TracedStep, to: float, keeps_spread: bool, s_noise: float, path: Coordinates
) -> Form:
    """A row that was checked and settled where its path is straight, its noise times s_noise."""
    if path.straight:
        check_row(row, step, to, keeps_spread, path)
        if keeps_spread and row.terms.get(step.x) != 1.0:
            row = settle(row, step, to, path)
    if s_noise == 1.0:
        return row
    return Form({s: s_noise * w if isinstance(s, Noise) else w for s, w in row.terms.items()})


def check_range(sigmas: Sequence[float], name: str = "sigmas") -> None:
    """Raise ValueError for levels that are too large or too small for the weights of a row."""
    for i, level in enumerate(sigmas):
        if level and not _SMALLEST <= level <= _LARGEST:
            raise ValueError(
                f"{name} must lie in [{_SMALLEST:g}, {_LARGEST:g}] or be 0; got {level:g} at "
                f"index {i}"
            )


def check_one_normal(step: TracedStep, result: Form) -> None:
    """Fresh normals of one step would be the same draw: a second one needs a path."""
    normals = {s for s in result.terms if isinstance(s, Noise)}
    normals |= {s for ask in step.asks for s in ask.y.terms if isinstance(s, Noise)}
    if len(normals) + (step.churn is not None) > 1:
        raise ArithmeticError(f"a step may draw one fresh normal; got {sorted(map(str, normals))}")


def _data(symbol: Symbol, step: TracedStep, path: Coordinates) -> float:
    """How much of constant D is in the symbol: alpha of a state, d alpha / dlevel of a slope."""
    if isinstance(symbol, Noise):
        return 0.0
    if isinstance(symbol, State):
        return path.alpha(step.start)
    if isinstance(symbol, Past) and symbol.slope:
        return 0.0 if path.karras else -1.0
    if isinstance(symbol, Ask) and symbol.to is not None:
        return path.alpha(symbol.to)
    return 1.0


def _spread(symbol: Symbol, step: TracedStep, path: Coordinates) -> float:
    """How much of z is in the symbol: sigma of a state, d sigma / dlevel = 1 of a slope."""
    if isinstance(symbol, State):
        return path.sigma(step.start)
    if isinstance(symbol, Ask) and symbol.to is not None:
        return path.sigma(symbol.to)
    return 1.0 if isinstance(symbol, Past) and symbol.slope else 0.0


def _carried(symbol: Symbol) -> bool:
    """Whether this is a state that a flow map made."""
    return isinstance(symbol, Ask) and symbol.to is not None


def _number(weight: Weight) -> float:
    if isinstance(weight, Tensor):
        raise TypeError("weights must be numbers, such as float(w); got a tensor")
    return float(weight)
