"""What reinforcement learning on flow models samples with, as its papers print it, in t."""

import math
from functools import partial
from itertools import pairwise

import cmsolvers as cm
from support.algorithms.row import Row


def in_time(step):
    """An algorithm of `step(x, v, t, to, z)` for levels t / (1 - t); a step to 0 gives x0."""

    def algorithm(model, x, levels, z):
        for i, (s, s_next) in enumerate(pairwise(levels)):
            clean, t, to = model(x, s), s / (1 + s), s_next / (1 + s_next)
            if to == 0:
                return clean
            x_t = (1 - t) * x
            v = (x_t - clean) / t
            x = step(x_t, v, t, to, z(i, s, s_next)) / (1 - to)
        return x

    return algorithm


def flow_grpo(x, v, t, to, z, *, a):
    """Liu et al. (2025), section 4.2."""
    s, dt = a * math.sqrt(t / (1 - t)), to - t
    mean = x * (1 + s**2 / (2 * t) * dt) + v * (1 + s**2 * (1 - t) / (2 * t)) * dt
    return mean + s * math.sqrt(-dt) * z


def preserving(x, v, t, to, z, *, a):
    """Wang & Yu (2025)."""
    x0, x1 = x - t * v, x + (1 - t) * v
    std = to * math.sin(a * math.pi / 2)
    return (1 - to) * x0 + math.sqrt(to**2 - std**2) * x1 + std * z


ROWS = [
    Row(cm.flow_sde, in_time(partial(flow_grpo, a=0.7))),
    Row(cm.flow_sde, in_time(partial(flow_grpo, a=0.0)), {"eta": 0.0}, order=1),
    Row(cm.cps, in_time(partial(preserving, a=0.7))),
    Row(cm.cps, in_time(partial(preserving, a=0.0)), {"eta": 0.0}, order=1),
]
