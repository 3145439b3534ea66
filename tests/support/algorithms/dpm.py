"""DPM-Solver and DPM-Solver++ (singlestep) in VP coordinates, and their ancestral forms."""

import math
from functools import partial

import cmsolvers as cm
from support.algorithms.edm import CHURN, heun_nfe
from support.algorithms.row import Row


class VP:
    """A variance-preserving model: alpha^2 + sigma^2 = 1, lambda = ln(alpha / sigma)."""

    def __init__(self, model):
        self.model = model

    @staticmethod
    def alpha(level):
        return 1 / math.sqrt(1 + level * level)

    @classmethod
    def sigma(cls, level):
        return level * cls.alpha(level)

    def data(self, x, level):
        return self.model(x / self.alpha(level), level)

    def eps(self, x, level):
        return (x - self.alpha(level) * self.data(x, level)) / self.sigma(level)


def solver_1(vp, x, s, t):
    """Lu et al. (2022a), eq. 3.7, as DDIM, which also reaches 0."""
    return vp.alpha(t) * vp.data(x, s) + vp.sigma(t) * vp.eps(x, s)


def solver_2(vp, x, s, t):
    """Lu et al. (2022a), algorithm 1."""
    if t == 0:
        return solver_1(vp, x, s, t)
    h = math.log(s) - math.log(t)
    middle = math.exp(math.log(s) - h / 2)
    a, b, c = vp.alpha(s), vp.alpha(middle), vp.alpha(t)
    u = b / a * x - vp.sigma(middle) * math.expm1(h / 2) * vp.eps(x, s)
    return c / a * x - vp.sigma(t) * math.expm1(h) * vp.eps(u, middle)


def solver_3(vp, x, s, t):
    """Lu et al. (2022a), algorithm 2."""
    h, r1, r2 = math.log(s) - math.log(t), 1 / 3, 2 / 3
    s1, s2 = math.exp(math.log(s) - r1 * h), math.exp(math.log(s) - r2 * h)
    a, e = vp.alpha(s), vp.eps(x, s)
    u1 = vp.alpha(s1) / a * x - vp.sigma(s1) * math.expm1(r1 * h) * e
    d1 = vp.eps(u1, s1) - e
    u2 = vp.alpha(s2) / a * x - vp.sigma(s2) * math.expm1(r2 * h) * e
    u2 = u2 - vp.sigma(s2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = vp.eps(u2, s2) - e
    x = vp.alpha(t) / a * x - vp.sigma(t) * math.expm1(h) * e
    return x - vp.sigma(t) / r2 * (math.expm1(h) / h - 1) * d2


def solver_pp_2s(vp, x, s, t, r=0.5):
    """Lu et al. (2022b), algorithm 1."""
    if t == 0:
        return solver_1(vp, x, s, t)
    h = math.log(s) - math.log(t)
    middle = math.exp(math.log(s) - r * h)
    data = vp.data(x, s)
    ratio = vp.sigma(middle) / vp.sigma(s)
    u = ratio * x - vp.alpha(middle) * math.expm1(-r * h) * data
    mixed = (1 - 1 / (2 * r)) * data + 1 / (2 * r) * vp.data(u, middle)
    return vp.sigma(t) / vp.sigma(s) * x - vp.alpha(t) * math.expm1(-h) * mixed


def ancestral(vp, solver, x, s, t, z, eta, s_noise):
    """x on level s, to t: the solver's step to the lower level, then noise; x as in the data."""
    up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
    down = math.sqrt(t**2 - up**2)
    x = solver(vp, vp.alpha(s) * x, s, down) / vp.alpha(down)
    return x + s_noise * up * z if up else x


def singlestep(model, x, levels, z, *, solver, eta=0.0, s_noise=1.0):
    vp = VP(model)
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        x = ancestral(vp, solver, x, s, t, z(i, s, t), eta, s_noise)
    return x


def fast(model, x, levels, z, *, eta=0.0, s_noise=1.0):
    """Lu et al. (2022a), appendix D: K = n // 3 + 1 steps that spend n evaluations."""
    vp, n, solvers = VP(model), len(levels) - 1, {1: solver_1, 2: solver_2, 3: solver_3}
    k = n // 3 + 1
    orders = [3] * (k - 2) + [2, 1] if n % 3 == 0 else [3] * (k - 1) + [n % 3]
    if orders[-1] == 2 and levels[-1] == 0:
        orders[-1:] = [1, 1]
    at = 0
    for i, order in enumerate(orders):
        s, t = levels[at], levels[at + order]
        x = ancestral(vp, solvers[order], x, s, t, z(i, s, t), eta, s_noise)
        at += order
    return x


def midpoint(model, x, levels, z, *, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0):
    """Karras et al. (2022), algorithm 2, with the midpoint rule at the geometric mean."""
    n = len(levels) - 1
    for i in range(n):
        t, t_next = levels[i], levels[i + 1]
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0
        t_hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * z(i, t, t_hat)
        d = (x - model(x, t_hat)) / t_hat
        if t_next != 0:
            middle = math.exp((math.log(t_hat) + math.log(t_next)) / 2)
            x_middle = x + (middle - t_hat) * d
            d = (x_middle - model(x_middle, middle)) / middle
        x = x + (t_next - t_hat) * d
    return x


def euler_ancestral(model, x, levels, z, *, eta=1.0, s_noise=1.0):
    """Euler's step to the lower level, then noise."""
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
        down = math.sqrt(t**2 - up**2)
        x = x + (x - model(x, s)) / s * (down - s) + s_noise * up * z(i, s, t)
    return x


ODE = {"eta": 0.0}
LESS = {"eta": 0.6, "s_noise": 1.01}
FULL = {"eta": 8.0}
second, plus = partial(singlestep, solver=solver_2), partial(singlestep, solver=solver_pp_2s)
ROWS = [
    Row(cm.dpm_2, second, nfe=heun_nfe, order=2),
    Row(cm.dpm_2, partial(midpoint, **CHURN), CHURN, nfe=heun_nfe),
    Row(cm.dpm_2_ancestral, partial(second, eta=1.0), nfe=heun_nfe),
    Row(cm.dpm_2_ancestral, second, ODE, nfe=heun_nfe, order=2),
    Row(cm.dpm_2_ancestral, partial(second, **LESS), LESS, nfe=heun_nfe),
    Row(cm.dpmpp_2s_ancestral, partial(plus, eta=1.0), nfe=heun_nfe),
    Row(cm.dpmpp_2s_ancestral, plus, ODE, nfe=heun_nfe, order=2),
    Row(cm.dpmpp_2s_ancestral, partial(plus, **LESS), LESS, nfe=heun_nfe),
    Row(cm.euler_ancestral, euler_ancestral),
    Row(cm.euler_ancestral, partial(euler_ancestral, eta=0.0), ODE, order=1),
    Row(cm.euler_ancestral, partial(euler_ancestral, **LESS), LESS),
    Row(cm.euler_ancestral, partial(euler_ancestral, **FULL), FULL),
    Row(cm.dpm_fast, fast, order=3, counts=tuple(3 * 2**k + 2 for k in range(5, 11))),
    Row(cm.dpm_fast, partial(fast, **LESS), LESS),
    Row(cm.dpm_fast, partial(fast, eta=1.0), {"eta": 1.0}),
]
