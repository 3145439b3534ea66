"""Adams-Bashforth in sigma with steps of any size (Hairer, Norsett & Wanner, section III.5)."""

from functools import partial

import torch

import cmsolvers as cm
from support.algorithms.row import F64, Row


def adams_bashforth(model, x, levels, z, *, order):
    """Weights that integrate 1, u, u^2, ... exactly: a Vandermonde system, not Lagrange's form."""
    slopes = []
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        d = model(x, s)
        if t == 0:
            return d
        slopes.append((x - d) / s)
        k = min(order, len(slopes))
        nodes = torch.tensor([(levels[i - j] - s) / (t - s) for j in range(k)], dtype=F64)
        powers = torch.arange(k, dtype=F64)
        weights = torch.linalg.solve(nodes ** powers[:, None], 1 / (powers + 1))
        for j in range(k):
            x = x + (t - s) * weights[j] * slopes[-1 - j]
    return x


ROWS = [
    Row(
        cm.lms,
        partial(adams_bashforth, order=k),
        {} if k == 4 else {"order": k},
        order=k,
        soft_start=k > 2,
    )
    for k in (4, 3, 2, 1)
]
