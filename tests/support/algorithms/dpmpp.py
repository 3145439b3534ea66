"""DPM-Solver++ in the coordinates of its paper (Lu et al. 2022): 2M, 2S on the SDE, SDE-2M, 3M."""

import math
from functools import partial

import cmsolvers as cm
from support.algorithms.row import Row
from support.algorithms.vp import VP, data, integral, lagrange


def dpmpp_2m(model, x, levels, z):
    """Algorithm 2, the final step to sigma = 0 being its first-order one."""
    x = x * VP(levels[0]).alpha
    outputs = []
    for i in range(1, len(levels)):
        s, t = VP(levels[i - 1]), VP(levels[i])
        outputs.append(data(model, x, s))
        d, h = outputs[-1], t.lam - s.lam
        if i > 1 and t.level > 0:
            r = (s.lam - VP(levels[i - 2]).lam) / h
            d = (1 + 1 / (2 * r)) * outputs[-1] - 1 / (2 * r) * outputs[-2]
        x = t.sigma / s.sigma * x - t.alpha * (math.exp(-h) - 1) * d
    return x / VP(levels[-1]).alpha


def sde_2s(model, x, levels, z, *, r=0.5, s_noise=1.0):
    """Algorithm 1 with both lines replaced by the first-order solver of the SDE."""
    x = x * VP(levels[0]).alpha

    def first_order(s, t, d, noise):
        h = t.lam - s.lam
        mean = t.sigma / s.sigma * math.exp(-h) * x + t.alpha * (1 - math.exp(-2 * h)) * d
        return mean + s_noise * t.sigma * math.sqrt(1 - math.exp(-2 * h)) * noise

    for i in range(len(levels) - 1):
        s, t = VP(levels[i]), VP(levels[i + 1])
        d = data(model, x, s)
        if t.level == 0:
            x = t.alpha * d
            continue
        middle = VP(math.exp(-(s.lam + r * (t.lam - s.lam))))
        u = first_order(s, middle, d, z(i, s.level, middle.level))
        d = (1 - 1 / (2 * r)) * d + 1 / (2 * r) * data(model, u, middle)
        x = first_order(s, t, d, z(i, s.level, t.level))
    return x / VP(levels[-1]).alpha


def ancestral_2s(model, x, levels, z, *, eta, r=0.5):
    """The same for other eta: a step of the ODE to below the level, and noise up to it."""
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        clean = model(x, s)
        if t == 0:
            x = clean
            continue
        for end, d in ((s ** (1 - r) * t**r, lambda: clean), (t, lambda: both)):  # noqa: B023
            up = min(end, eta * math.sqrt(end**2 * (s**2 - end**2) / s**2))
            down = math.sqrt(end**2 - up**2)
            y = x + (down - s) * (x - d()) / s + up * z(i, s, end)
            if end != t:
                both = clean + (model(y, end) - clean) / (2 * r)
        x = y
    return x


def sde_2m(model, x, levels, z, *, eta=1.0, s_noise=1.0, solver_type="midpoint"):
    """SDE-DPM-Solver++(2M); eta = 1 in the paper."""
    x = x * VP(levels[0]).alpha
    outputs = []
    for i in range(1, len(levels)):
        s, t = VP(levels[i - 1]), VP(levels[i])
        outputs.append(data(model, x, s))
        if t.level == 0:
            x = t.alpha * outputs[-1]
            continue
        h = t.lam - s.lam
        e = math.exp(-(1 + eta) * h)
        x = t.sigma / s.sigma * math.exp(-eta * h) * x + t.alpha * (1 - e) * outputs[-1]
        if i > 1:
            r = (s.lam - VP(levels[i - 2]).lam) / h
            slope = (outputs[-1] - outputs[-2]) / r
            if solver_type == "midpoint":
                x = x + t.alpha * (1 - e) / 2 * slope
            else:
                x = x + t.alpha * ((1 - e) / (-(1 + eta) * h) + 1) * slope
        noise = math.sqrt(1 - math.exp(-2 * eta * h)) * z(i - 1, s.level, t.level)
        x = x + s_noise * t.sigma * noise
    return x / VP(levels[-1]).alpha


def sde_3m(model, x, levels, z, *, eta=1.0, s_noise=1.0):
    """The exact solution of the SDE with the model's interpolant under the integral."""
    x = x * VP(levels[0]).alpha
    outputs, lams = [], []
    for i in range(1, len(levels)):
        s, t = VP(levels[i - 1]), VP(levels[i])
        outputs, lams = [data(model, x, s), *outputs][:3], [s.lam, *lams][:3]
        if t.level == 0:
            x = t.alpha * outputs[0]
            continue
        h, rate = t.lam - s.lam, 1 + eta
        x = t.sigma / s.sigma * math.exp(-eta * h) * x
        for j, d in enumerate(outputs):
            kernel = lambda v, j=j: math.exp(-rate * (t.lam - v)) * lagrange(lams, j, v)  # noqa: B023, E731
            x = x + t.alpha * rate * integral(kernel, s.lam, t.lam) * d
        noise = math.sqrt(1 - math.exp(-2 * eta * h)) * z(i - 1, s.level, t.level)
        x = x + s_noise * t.sigma * noise
    return x / VP(levels[-1]).alpha


def two_a_step(n, to_zero):
    return 2 * n - to_zero


def both(sampler, algorithm, options, **facts):
    return Row(sampler, partial(algorithm, **options), options, **facts)


ODE = {"eta": 0.0}
PATH = {"path": True}
ROWS = [
    Row(cm.dpmpp_2m, dpmpp_2m, order=2),
    both(cm.dpmpp_sde, sde_2s, {}, nfe=two_a_step, **PATH),
    both(cm.dpmpp_sde, sde_2s, {"r": 0.3, "s_noise": 0.9}, nfe=two_a_step, **PATH),
    both(cm.dpmpp_sde, ancestral_2s, {"eta": 0.6, "r": 0.7}, nfe=two_a_step, **PATH),
    both(cm.dpmpp_sde, ancestral_2s, {"eta": 1.3}, nfe=two_a_step, **PATH),
    both(cm.dpmpp_sde, ancestral_2s, ODE, nfe=two_a_step, order=2),
    both(cm.dpmpp_2m_sde, sde_2m, {}, **PATH),
    both(cm.dpmpp_2m_sde, sde_2m, {"solver_type": "heun", "s_noise": 1.01}, **PATH),
    both(cm.dpmpp_2m_sde, sde_2m, {"eta": 0.4}, **PATH),
    both(cm.dpmpp_2m_sde, sde_2m, ODE, order=2),
    both(cm.dpmpp_2m_sde, sde_2m, {**ODE, "solver_type": "heun"}, order=2),
    both(cm.dpmpp_3m_sde, sde_3m, {"s_noise": 0.98}, **PATH),
    both(cm.dpmpp_3m_sde, sde_3m, {"eta": 1.2}, **PATH),
    both(cm.dpmpp_3m_sde, sde_3m, ODE, order=3, soft_start=True),
]
