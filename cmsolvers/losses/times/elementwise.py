"""Functions of levels whose bits do not depend on a sample's place in the batch.

`torch.sigmoid`, `exp2`, `sinh`, `cosh` and torch's power compute the last entries of a CPU tensor
by other code than the first ones, so that sample i of a smaller batch could get a level one ULP
away. exp, log, tan, asinh, ndtri and ndtr are free of that.
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor


def logistic(z: Tensor) -> Tensor:
    """1 / (1 + e^-z), a time in (0, 1) whose logit is z."""
    return 1.0 / (1.0 + torch.exp(-z))


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent for x >= 0 and a positive exponent."""
    return torch.exp(exponent * torch.log(x))


@overload
def exp2(x: float) -> float: ...


@overload
def exp2(x: Tensor) -> Tensor: ...


def exp2(x: float | Tensor) -> float | Tensor:
    """2^x for float64 x in [-1022, 1023], exact for whole ones; below that next to 0.

    A number and a tensor that holds it give the same.
    """
    if not isinstance(x, Tensor):
        power_of_two = max(round(x), -1022)
        return math.ldexp(math.exp(max(x - power_of_two, -0.5) * math.log(2.0)), power_of_two)
    whole = x.round().clamp_min(-1022.0)
    # The bits of a power of two are its exponent.
    scale = ((whole.to(torch.int64) + 1023) << 52).view(torch.float64)
    return torch.exp((x - whole).clamp_min(-0.5) * math.log(2.0)) * scale
