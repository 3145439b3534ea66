"""DDIM and DDPM in the coordinates of their papers."""

import math
from functools import partial

import cmsolvers as cm
from support.algorithms.row import Row


def ddim_in_alphas(model, x, levels, z, *, eta, s_noise=1.0):
    """Song et al. (2021), eq. 12 and 16, in their own coordinates: alpha = 1 / (1 + sigma^2)."""
    alphas = [1 / (1 + s * s) for s in levels]
    x = x * math.sqrt(alphas[0])
    for i in range(len(levels) - 1):
        a, b = alphas[i], alphas[i + 1]
        clean = model(x / math.sqrt(a), levels[i])
        eps = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
        spread = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        direction = math.sqrt(max(0.0, 1 - b - spread**2)) * eps
        x = math.sqrt(b) * clean + direction + s_noise * spread * z(i, levels[i], levels[i + 1])
    return x / math.sqrt(alphas[-1])


def ddpm_posterior(model, x, levels, z):
    """Ho et al. (2020), eq. 6-7: the posterior's mean and variance, in their own coordinates."""
    alphas = [1 / (1 + s * s) for s in levels]
    x = x * math.sqrt(alphas[0])
    for i in range(len(levels) - 1):
        bar, bar_next = alphas[i], alphas[i + 1]
        alpha = bar / bar_next
        beta = 1 - alpha
        clean = model(x / math.sqrt(bar), levels[i])
        mean = math.sqrt(bar_next) * beta / (1 - bar) * clean
        mean = mean + math.sqrt(alpha) * (1 - bar_next) / (1 - bar) * x
        x = mean + math.sqrt((1 - bar_next) / (1 - bar) * beta) * z(i, levels[i], levels[i + 1])
    return x / math.sqrt(alphas[-1])


ROWS = [
    Row(cm.ddim, partial(ddim_in_alphas, eta=0.0), order=1),
    Row(cm.ddim, partial(ddim_in_alphas, eta=0.6), {"eta": 0.6}),
    Row(cm.ddim, partial(ddim_in_alphas, eta=1.0, s_noise=0.9), {"eta": 1.0, "s_noise": 0.9}),
    Row(cm.ddpm_ancestral, ddpm_posterior),
    Row(cm.ddpm_ancestral, partial(ddim_in_alphas, eta=0.3), {"eta": 0.3}),
]
