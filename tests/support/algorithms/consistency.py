"""Song et al. (2023), algorithm 1."""

import math
from functools import partial

import cmsolvers as cm
from support.algorithms.row import Row


def consistency_algorithm_1(f, x, levels, z, *, sigma_min):
    """Song et al. (2023), algorithm 1."""
    levels = [max(s, sigma_min) for s in levels if s > 0]
    y = f(x, levels[0])
    for i, s in enumerate(levels[1:]):
        y = f(y + math.sqrt(s**2 - sigma_min**2) * z(i, levels[i], s), s)
    return y


def levels_above_zero(n, to_zero):
    return n if to_zero else n + 1


ROWS = [
    Row(
        cm.consistency_sample,
        partial(consistency_algorithm_1, sigma_min=end),
        {} if end == 0.002 else {"sigma_min": end},
        nfe=levels_above_zero,
        single=True,
    )
    for end in (0.002, 0.03)
]
