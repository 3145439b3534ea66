"""Functions of levels whose bits do not depend on a sample's place in the batch.

`torch.sigmoid` and torch's power compute the last entries of a CPU tensor by other code than the
first ones, so that sample i of a smaller batch could get a level one ULP away. Exponentials and
logarithms are free of that.
"""

from __future__ import annotations

import torch
from torch import Tensor


def logistic(z: Tensor) -> Tensor:
    """1 / (1 + e^-z), a time in (0, 1) whose logit is z."""
    return 1.0 / (1.0 + torch.exp(-z))


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent for x >= 0 and a positive exponent."""
    return torch.exp(exponent * torch.log(x))
