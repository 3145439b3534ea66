"""Problems with exact solutions, the grids for them, and orders of convergence by regression."""

import pytest
import torch
from scipy.integrate import solve_ivp

import cmsolvers as cm
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture

F64 = torch.float64
FIRST, LAST = 10.0, 0.1
STEPS = (32, 64, 128, 256, 512, 1024)
SOFT_STEPS = (128, 256, 512, 1024, 2048, 4096)


def slope(errors, steps=STEPS):
    """Order by least squares on ln error against ln steps."""
    x = torch.tensor(steps, dtype=F64).log()
    y = torch.stack([torch.as_tensor(e, dtype=F64) for e in errors]).log()
    x, y = x - x.mean(), y - y.mean()
    return -((x * y).sum() / (x * x).sum()).item()


def assert_order(errors, order, steps=STEPS):
    measured = slope(errors, steps)
    assert abs(measured - order) < 0.1, f"order {measured:.3f}, expected {order}"


def grid(n):
    return cm.karras_sigmas(n + 1, LAST, FIRST, append_zero=False)


def soft_grid(n):
    """First steps that shrink like 1/n^2: the Euler step of a multistep method costs no order."""
    u, ends = torch.linspace(0, 1, n + 1, dtype=F64) ** 2, (FIRST ** (1 / 7), LAST ** (1 / 7))
    return (ends[0] + u * (ends[1] - ends[0])) ** 7


def gaussian_problem():
    data = Gaussian(0.5, 0.3)
    x = FIRST * torch.linspace(-1.5, 2, 8, dtype=F64)[:, None]
    return data, x, data.consistency(x, FIRST, LAST)


def mixture_problem():
    data = GaussianMixture([-1.0, 0.2, 1.1], [0.3, 0.2, 0.4], [0.3, 0.3, 0.4])
    x = FIRST * torch.linspace(-1.5, 2, 8, dtype=F64)[:, None]

    def rate(s, y):
        y = torch.tensor(y)[:, None]
        return ((y - data(y, s)) / s)[:, 0].numpy()

    path = solve_ivp(rate, (FIRST, LAST), x[:, 0].numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
    return data, x, torch.tensor(path.y[:, -1])[:, None]


PROBLEMS = {"gaussian": gaussian_problem(), "mixture": mixture_problem()}
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def errors_of(sampler, problem, steps=STEPS, grid=grid):
    data, x, exact = problem
    return [(sampler(data, x, grid(n)) - exact).abs().max() for n in steps]
