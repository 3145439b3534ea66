"""DEIS and iPNDM with their noise estimates, in the coordinates of the papers."""

import math
from functools import partial

import cmsolvers as cm
from support.algorithms.row import Row
from support.algorithms.vp import VP, data, integral, lagrange


def noise_estimate(model, x, at):
    """eps_theta(x, t)."""
    return (x - at.alpha * data(model, x, at)) / at.sigma


def deis(model, x, levels, z, *, order=3):
    """Zhang & Chen (2023), AB-DEIS, the integrals by quadrature in rho = sigma / alpha."""
    x = x * VP(levels[0]).alpha
    estimates, times = [], []
    for i in range(len(levels) - 1):
        s, t = VP(levels[i]), VP(levels[i + 1])
        estimates = [noise_estimate(model, x, s), *estimates][:order]
        times = [math.log(s.level), *times][:order]
        if t.level == 0:
            return data(model, x, s)
        x = t.alpha / s.alpha * x
        for j, e in enumerate(estimates):
            polynomial = lambda rho, j=j: lagrange(times, j, math.log(rho))  # noqa: B023, E731
            x = x + t.alpha * integral(polynomial, s.level, t.level) * e
    return x / VP(levels[-1]).alpha


def ipndm(model, x, levels, z, *, order=4):
    """Liu et al. (2022), linear multistep, with lower orders in place of Runge-Kutta."""
    x = x * VP(levels[0]).alpha
    e = []
    for i in range(len(levels) - 1):
        s, t = VP(levels[i]), VP(levels[i + 1])
        e = [noise_estimate(model, x, s), *e][:order]
        if t.level == 0 or len(e) == 1:
            mixed = e[0]
        elif len(e) == 2:
            mixed = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            mixed = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:
            mixed = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        x = t.alpha * (x - s.sigma * mixed) / s.alpha + t.sigma * mixed
    return x / VP(levels[-1]).alpha


ROWS = [
    Row(cm.deis, deis, order=3, soft_start=True),
    Row(cm.deis, partial(deis, order=1), {"order": 1}, order=1),
    Row(cm.deis, partial(deis, order=2), {"order": 2}, order=2),
    # Order 2 is all that fixed weights leave on these grids; see test_orders.py for even ones.
    Row(cm.ipndm, ipndm, order=2),
    Row(cm.ipndm, partial(ipndm, order=1), {"order": 1}, order=1),
    Row(cm.ipndm, partial(ipndm, order=2), {"order": 2}, order=2),
    Row(cm.ipndm, partial(ipndm, order=3), {"order": 3}),
]
