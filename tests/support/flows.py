"""Exact flow models, and networks in the coordinates of other processes, for tests of samplers."""

import math

import torch

import cmsolvers as cm
from cmsolvers.denoisers import from_flow
from cmsolvers.denoisers.oracles import Gaussian
from support.orders import F64

SD, MEAN = 0.5, 0.3
DATA = Gaussian(SD, MEAN)
TRIG = cm.TrigFlow(0.4)


def column(t, x):
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def velocity(x, t):
    """E[z - x0 | x_t] of data N(MEAN, SD^2)."""
    t = column(t, x)
    alpha, centred = 1 - t, x - (1 - t) * MEAN
    return (t - alpha * SD**2) / (alpha**2 * SD**2 + t**2) * centred - MEAN


def clean(process):
    """E[x0 | x_t] in the coordinates of a process."""

    def net(x, t):
        alpha, sigma = column(process.alpha(t), x), column(process.sigma(t), x)
        gain = alpha * SD**2 / (alpha**2 * SD**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return net


FLOWING = from_flow(velocity)


def exact(process, x, t, to):
    """Where the probability-flow ODE takes x."""
    (a, s), (b, r) = ((process.alpha(u), process.sigma(u)) for u in (t, to))
    grown = math.sqrt((b * b * SD**2 + r * r) / (a * a * SD**2 + s * s))
    return b * MEAN + grown * (x - a * MEAN)


X = torch.tensor([[-1.0], [0.4], [1.3]], dtype=F64)
EVEN = (32, 64, 128, 256, 512)
THIRDS = (122, 242, 482, 962)  # n = 3 k + 2 for dpm_fast


def even(n, first, last, power=1):
    """Even steps, or small first ones: the Euler step of a multistep method costs no order then."""
    return first + (last - first) * torch.linspace(0, 1, n + 1, dtype=F64) ** power
