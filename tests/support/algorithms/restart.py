"""Xu et al. (2023), algorithm 1, with Heun's method as the one-step solver."""

import math
from functools import partial

import cmsolvers as cm
from support.algorithms.row import Row


def heun(model, x, s, t):
    d = (x - model(x, s)) / s
    y = x + (t - s) * d
    return y if t == 0 else x + (t - s) * (d + (y - model(y, t)) / t) / 2


def restart_algorithm_1(model, x, levels, z, *, restarts=(), s_noise=1.0, rho=7.0):
    """Line by line; the grid of each interval is eq. 5 of Karras et al. (2022)."""
    count = 0

    def step(x, s, t):
        nonlocal count
        count += 1
        return heun(model, x, s, t)

    for i, level in enumerate(levels):
        if i:
            x = step(x, levels[i - 1], level)
        for t_min, t_max, steps, times in restarts:
            positive = [s for s in levels if s > 0]
            if level != positive[min(range(len(positive)), key=lambda j: abs(positive[j] - t_min))]:
                continue
            a, b = t_max ** (1 / rho), level ** (1 / rho)
            grid = [(a + k / steps * (b - a)) ** rho for k in range(steps + 1)]
            for _ in range(times):
                noise = s_noise * z(count, level, t_max)
                x = x + math.sqrt(t_max**2 - level**2) * noise
                for k in range(steps):
                    x = step(x, grid[k], grid[k + 1])
    return x


def nfe_of(restarts):
    loops = sum(2 * steps * times for _, _, steps, times in restarts)
    return lambda n, to_zero: 2 * n - to_zero + loops


# The schedules of the tests start at 20, some end there: t_max lies above.
ONE = {"restarts": [(15.0, 20.5, 2, 2)]}
MORE = {"restarts": [(0.4, 21.0, 6, 1), (9.0, 20.1, 1, 2)], "s_noise": 1.003, "rho": 5.0}
ROWS = [
    Row(cm.restart, restart_algorithm_1, nfe=nfe_of(()), order=2),
    *(
        Row(cm.restart, partial(restart_algorithm_1, **o), o, nfe=nfe_of(o["restarts"]))
        for o in (ONE, MORE)
    ),
]
