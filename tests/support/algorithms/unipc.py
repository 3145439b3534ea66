"""UniPC with its predicted and corrected states apart (Zhao et al. 2023), data prediction."""

import math
from functools import partial

import torch

import cmsolvers as cm
from support.algorithms.row import Row
from support.algorithms.vp import VP, data


def phi(k, z):
    """phi_{k+1} = (phi_k - 1/k!) / z from phi_0 = e^z."""
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def update(x, s, t, base, others, variant):
    """UniP or UniC: (r_m, D_m) in `others`, coefficients a_m by solving the linear system."""
    h = t.lam - s.lam
    b = h if variant == "bh1" else -math.expm1(-h)
    y = t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * base
    if not others:
        return y
    count = len(others)
    if count == 1:
        a = [0.5]
    else:
        r = torch.tensor([[rm**n for rm, _ in others] for n in range(count)], dtype=torch.float64)
        wanted = [h * math.factorial(n) * phi(n + 1, -h) / b for n in range(1, count + 1)]
        a = torch.linalg.solve(r, torch.tensor(wanted, dtype=torch.float64)).tolist()
    for am, (rm, d) in zip(a, others, strict=True):
        y = y + t.alpha * b * am * (d - base) / rm
    return y


def unipc(model, x, levels, z, *, order=3, variant="bh2"):
    """Multistep: predict, evaluate, correct; the last state is not corrected."""
    corrected = x * VP(levels[0]).alpha
    at, outputs = [VP(levels[0])], [data(model, corrected, VP(levels[0]))]
    for i in range(1, len(levels)):
        s, t = at[-1], VP(levels[i])
        if t.level == 0:
            predicted = outputs[-1]
            break
        h, p = t.lam - s.lam, min(order, i)
        past = [((at[-m].lam - s.lam) / h, outputs[-m]) for m in range(2, p + 1)]
        predicted = update(corrected, s, t, outputs[-1], past, variant)
        if i == len(levels) - 1:
            break
        new = data(model, predicted, t)
        corrected = update(corrected, s, t, outputs[-1], [*past, (1.0, new)], variant)
        at, outputs = [*at, t], [*outputs, new]
    return predicted / t.alpha


ROWS = [
    Row(cm.unipc, partial(unipc, **options), options, order=order)
    for options, order in (
        ({}, 4),
        ({"order": 1}, 2),
        ({"order": 1, "variant": "bh1"}, 2),
        ({"order": 2}, 3),
        ({"order": 2, "variant": "bh1"}, 3),
        ({"variant": "bh1"}, None),
    )
]
