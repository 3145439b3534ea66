"""Argument checks shared by the package.

Every check names the argument, what was expected and what came, and returns the value in the form
that the rest of the code works with. `TypeError` is for the wrong kind of thing, `ValueError` for
the wrong value of the right kind.
"""

from __future__ import annotations

import ctypes
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import SupportsFloat, SupportsIndex, TypeAlias, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import forward_ad

Levels: TypeAlias = Tensor | Sequence[float] | npt.NDArray[np.float64] | npt.NDArray[np.float32]
"""What a schedule may be: a 1-D floating tensor or array, or a sequence of numbers."""

_F = TypeVar("_F", bound=Callable[..., object])

STATE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PRECISION = {torch.float64: 3, torch.float32: 2, torch.float16: 1, torch.bfloat16: 1}
"""The dtypes that the kernels know, each with its rank: a higher rank is a wider dtype."""


def carries_tangent(t: Tensor) -> bool:
    """Whether the tensor has a tangent on the current level of forward-mode differentiation."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]


def differentiated(t: Tensor) -> bool:
    """Whether autograd follows the tensor now, in reverse or forward mode."""
    return (t.requires_grad and torch.is_grad_enabled()) or carries_tangent(t)


def describe(value: object) -> str:
    """A short description of a value for an error text, without printing its contents."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)} on {value.device}"
    if isinstance(value, int) and not isinstance(value, bool):
        return whole(value)
    if isinstance(value, (bool, float, str)) or value is None:
        return repr(value)
    return f"an object of type {type(value).__name__}"


def whole(value: int) -> str:
    """An int for an error text: its digits, or how many there are about where they fill lines."""
    if abs(value) < 10**20:
        return str(value)
    size = f"an int of about {math.floor(value.bit_length() * math.log10(2.0)) + 1} digits"
    return f"{size}, negative" if value < 0 else size


def strided(name: str, value: Tensor) -> Tensor:
    """A tensor with plain memory: not sparse, not nested."""
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else value.layout
        raise TypeError(f"{name} must be a plain strided tensor; got {kind}")
    return value


def tensor(name: str, value: object) -> Tensor:
    """A tensor of one of the four floating dtypes, on a device that holds data."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {describe(value)}")
    strided(name, value)
    if value.dtype not in PRECISION:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16; got {value.dtype}")
    if value.device.type == "meta":
        raise ValueError(f"{name} must be on a device that holds data; got device meta")
    return value


def state(name: str, value: object) -> Tensor:
    """A batched floating tensor, shape [B, ...]."""
    x = tensor(name, value)
    if x.ndim == 0:
        raise ValueError(
            f"{name} must have a batch dimension, shape [B, ...]; got a tensor of shape []"
        )
    return x


def model_output(name: str, value: object, x: Tensor) -> Tensor:
    """What a callable returned for state x: shape and device of x, its precision or a lower one."""
    if not isinstance(value, Tensor):
        found = describe(value) + _inside(name, value)
        raise TypeError(f"{name} must return a torch.Tensor; it returned {found}")
    if value.shape != x.shape:
        raise ValueError(
            f"{name} must return the shape of x, {list(x.shape)}; it returned {list(value.shape)}"
        )
    if value.dtype is not x.dtype and PRECISION.get(value.dtype, 9) >= PRECISION[x.dtype]:
        raise TypeError(
            f"{name} must return the dtype of x, {x.dtype}, or a floating one of lower precision; "
            f"it returned {value.dtype}"
        )
    if value.device != x.device:
        raise ValueError(
            f"{name} must return a tensor on the device of x, {x.device}; "
            f"it returned one on {value.device}"
        )
    return value


def _inside(name: str, value: object) -> str:
    """For an error text: where in the value the tensor is, and how to hand that over."""
    if isinstance(getattr(value, "sample", None), Tensor):  # the outputs of diffusers
        place = ".sample"
    elif isinstance(value, (dict, list, tuple)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        tensors = [f"[{where!r}]" for where, entry in entries if isinstance(entry, Tensor)]
        if not tensors:
            return ""
        place = tensors[0]
    else:
        return ""
    level = "t" if name == "net" else "sigma"
    return f": its {place} is one, wrap it as lambda x, {level}: {name}(x, {level}){place}"


def function(name: str, value: _F | None) -> _F:
    """Something that can be called. None is refused too, so its type is gone from the result."""
    if not callable(value):
        inner = ": its .module is" if callable(getattr(value, "module", None)) else ""
        raise TypeError(f"{name} must be callable; got {describe(value)}{inner}")
    return value


def optional_function(name: str, value: _F | None) -> _F | None:
    """None, or something that can be called."""
    return None if value is None else function(name, value)


def flag(name: str, value: object) -> bool:
    """A bool, not something that happens to be true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {describe(value)}")
    return value


def flags(**values: object) -> None:
    """Several flags at once."""
    for name, value in values.items():
        flag(name, value)


def _is_number(value: object) -> TypeGuard[SupportsFloat]:
    """An int, a float, or a tensor or array of shape []."""
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    return hasattr(value, "__float__") and getattr(value, "ndim", None) == 0


def real(name: str, value: object) -> float:
    """A number that is not NaN (infinity passes)."""
    if not _is_number(value):
        raise TypeError(f"{name} must be a number; got {describe(value)}")
    if isinstance(value, Tensor) and value.device.type == "meta":
        raise ValueError(f"{name} must be on a device that holds data; got device meta")
    number = as_float(name, value)
    if math.isnan(number):
        raise ValueError(f"{name} must be a number; got nan")
    return number


def as_float(name: str, value: SupportsFloat) -> float:
    """What converts to a float, as one; ints have no largest value, floats do."""
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(
            f"{name} must be a number that float64 holds, at most 1.8e308 in size; "
            f"got {describe(value)}"
        ) from error


def finite(name: str, value: object) -> float:
    """A finite number."""
    number = real(name, value)
    if math.isinf(number):
        raise ValueError(f"{name} must be finite; got {number}")
    return number


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be positive; got {number:g}")
    return number


def non_negative(name: str, value: object, *, infinite: bool = False) -> float:
    """A number at or above 0; `infinite` lets infinity pass."""
    number = real(name, value) if infinite else finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {number:g}")
    return number


def as_float32(value: float) -> float:
    """The number as float32 holds it; infinite where that is too large."""
    return ctypes.c_float(value).value


def within(name: str, value: object, low: float, high: float) -> float:
    """A number in [low, high]."""
    number = real(name, value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}]; got {number:g}")
    return number


def below(low_name: str, low: float, high_name: str, high: float) -> None:
    """`low < high`, both already checked."""
    if not low < high:
        raise ValueError(f"{low_name} must be below {high_name}; got {low:g} and {high:g}")


def sigma_range(sigma_min: object, sigma_max: object) -> tuple[float, float]:
    """The smallest and the largest noise level: positive, finite, the first below the second."""
    low, high = positive("sigma_min", sigma_min), positive("sigma_max", sigma_max)
    below("sigma_min", low, "sigma_max", high)
    return low, high


def count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """An int of at least `least` and at most `most`."""
    number = index(value)
    if number is None:
        raise TypeError(f"{name} must be an int; got {describe(value)}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {whole(number)}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}; got {whole(number)}")
    return number


def index(value: object) -> int | None:
    """An int, or what converts to one without loss, such as numpy's integers; no bool or tensor."""
    if type(value) is int:  # the test of a protocol is slow
        return value
    if isinstance(value, SupportsIndex) and not isinstance(value, (bool, np.bool_, Tensor)):
        try:
            return operator.index(value)
        except TypeError:  # an array of floats or of another shape has the method too
            pass
    return None


def choice(name: str, value: object, known: Sequence[str]) -> str:
    """One of the strings in `known`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str; got {describe(value)}")
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}")
    return value


def floats(name: str, value: object) -> list[float]:
    """A 1-D grid as Python floats (float64), read once."""
    if isinstance(value, Tensor):
        if not strided(name, value).dtype.is_floating_point:
            hint = " (timesteps? see schedules.ddpm_sigmas)" if name == "sigmas" else ""
            raise TypeError(f"{name} must be floating; got {value.dtype}{hint}")
        if value.device.type == "meta":
            raise ValueError(f"{name} must be on a device that holds data; got device meta")
        if value.ndim != 1:
            raise ValueError(f"{name} must be 1-D; got shape {list(value.shape)}")
        grid: list[float] = value.detach().double().tolist()
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        grid = [real(f"{name}[{i}]", entry) for i, entry in enumerate(value)]
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind != "f" or array.ndim != 1:
            raise TypeError(
                f"{name} must be a 1-D floating array; got {array.dtype} of shape "
                f"{list(array.shape)}"
            )
        grid = array.astype(np.float64).tolist()
    else:
        raise TypeError(
            f"{name} must be a 1-D floating tensor or a sequence of numbers; got {describe(value)}"
        )
    for i, entry in enumerate(grid):
        if not math.isfinite(entry):
            raise ValueError(f"{name} must be finite; got {entry} at index {i}")
    return grid


def sigmas(name: str, value: object, *, least: int = 2, up: bool = False) -> tuple[float, ...]:
    """Noise levels: finite, strictly descending, not negative, 0 only as the last of several.

    With `up` they may be strictly ascending, too, and all positive then.
    """
    grid = floats(name, value)
    if up and len(grid) >= least and grid[0] < grid[1]:
        return _ascending(name, grid)
    if len(grid) < least:
        raise ValueError(
            f"{name} must have at least {least} level{'s' if least > 1 else ''}; got {len(grid)}"
        )
    for i, entry in enumerate(grid):
        if i == 0 == entry:
            found = f"{grid[1]:g} after 0 at index 1" if len(grid) > 1 else "0 alone"
            raise ValueError(f"{name} must be strictly descending from above 0; got {found}")
        if entry < 0:
            raise ValueError(f"{name} must not be negative; got {entry:g} at index {i}")
        if entry == 0 and i != len(grid) - 1:
            raise ValueError(f"{name} may be 0 only at the end; got 0 at index {i} of {len(grid)}")
        if i and entry >= grid[i - 1]:
            raise ValueError(
                f"{name} must be strictly descending; "
                f"got {entry:g} after {grid[i - 1]:g} at index {i}{_whether_up(grid)}"
            )
    return tuple(grid)


def _whether_up(grid: Sequence[float]) -> str:
    up = all(a < b for a, b in pairwise(grid))
    return " (ascending levels are for samplers without noise)" if up else ""


def _ascending(name: str, grid: Sequence[float]) -> tuple[float, ...]:
    if not grid[0] > 0:
        raise ValueError(
            f"{name} must begin above 0 where they ascend: the smallest level, such as 0.002, "
            f"stands for data; got {grid[0]:g} at index 0"
        )
    for i, (before, entry) in enumerate(pairwise(grid), start=1):
        if not entry > before:
            raise ValueError(
                f"{name} must be strictly ascending or strictly descending; "
                f"got {entry:g} after {before:g} at index {i}"
            )
    return tuple(grid)


def times(name: str, value: object) -> tuple[float, ...]:
    """Times: finite, at least two, strictly ascending or strictly descending."""
    grid = floats(name, value)
    if len(grid) < 2:
        raise ValueError(f"{name} must have at least 2 entries; got {len(grid)}")
    sign = 1.0 if grid[1] > grid[0] else -1.0
    for i in range(1, len(grid)):
        if not sign * (grid[i] - grid[i - 1]) > 0:
            raise ValueError(
                f"{name} must be strictly ascending or strictly descending; "
                f"got {grid[i]:g} after {grid[i - 1]:g} at index {i}"
            )
    return tuple(grid)


def level(name: str, value: object, x: Tensor, *, zero: bool = False) -> float | Tensor:
    """A noise level for state x: a number, or a floating tensor [] or [B] on the device of x.

    Numbers are checked for sign; the entries of a tensor are not read, because that would wait for
    the device.
    """
    if not isinstance(value, Tensor):
        return non_negative(name, value) if zero else positive(name, value)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating; got {value.dtype}")
    return for_samples(name, value, x)


def for_samples(name: str, value: Tensor, x: Tensor) -> Tensor:
    """A tensor of shape [] or [B], on the device of x, for the samples of state x; not read."""
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] != x.shape[0]):
        raise ValueError(
            f"{name} must have shape [] or [B] = [{x.shape[0]}]; got {list(value.shape)}"
        )
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}; got {value.device}")
    return value


def options(name: str, value: object) -> dict[str, object]:
    """None, or a mapping with str keys: further keyword arguments for a user's callable."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        value = dict(value) if isinstance(value, Mapping) else value
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be None or a dict with str keys; got {describe(value)}")
    return value
