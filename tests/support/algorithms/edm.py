"""Karras et al. (2022), algorithm 2."""

import math
from functools import partial

import cmsolvers as cm
from support.algorithms.row import Row


def edm_algorithm_2(
    model, x, levels, z, *, correct, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0
):
    """Karras et al. (2022), algorithm 2, line by line."""
    n = len(levels) - 1
    for i in range(n):
        t, t_next = levels[i], levels[i + 1]
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0
        t_hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * z(i, t, t_hat)
        d = (x - model(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if correct and t_next != 0:
            d_next = (x_next - model(x_next, t_next)) / t_next
            x_next = x + (t_next - t_hat) * (d / 2 + d_next / 2)
        x = x_next
    return x


def heun_nfe(n, to_zero):
    return 2 * n - to_zero


CHURN = {"s_churn": 5.0, "s_tmin": 0.05, "s_tmax": 8.0, "s_noise": 1.003}
euler, heun = partial(edm_algorithm_2, correct=False), partial(edm_algorithm_2, correct=True)
ROWS = [
    Row(cm.euler_pf_ode, euler, order=1),
    Row(cm.heun_pf_ode, heun, nfe=heun_nfe, order=2),
    Row(cm.euler_pf_ode, partial(euler, **CHURN), CHURN),
    Row(cm.heun_pf_ode, partial(heun, **CHURN), CHURN, nfe=heun_nfe),
    Row(cm.heun_pf_ode, partial(heun, s_churn=100.0), {"s_churn": 100.0}, nfe=heun_nfe),
]
