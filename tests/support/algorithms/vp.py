"""The coordinates of most papers: x = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1."""

import math

import numpy as np


class VP:
    """One level: `sigma` is the paper's, `level` the ratio sigma / alpha that this library has."""

    def __init__(self, level):
        self.level = level
        self.alpha = 1 / math.sqrt(1 + level * level)
        self.sigma = level * self.alpha
        self.lam = math.inf if level == 0 else math.log(self.alpha / self.sigma)


def data(model, x, at):
    """x_theta(x, t)."""
    return model(x / at.alpha, at.level)


def integral(f, low, high, nodes=80):
    """By Gauss and Legendre's rule."""
    u, w = np.polynomial.legendre.leggauss(nodes)
    half = (high - low) / 2
    return sum(half * wi * f(low + half * (ui + 1)) for ui, wi in zip(u, w, strict=True))


def lagrange(points, j, t):
    """L_j(t), 1 at points[j] and 0 at the others."""
    return math.prod((t - p) / (points[j] - p) for k, p in enumerate(points) if k != j)
