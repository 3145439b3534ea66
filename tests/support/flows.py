"""Exact flow models, and networks in the coordinates of other processes, for tests of samplers."""

from functools import partial

import torch

import cmsolvers as cm
from cmsolvers.denoisers import from_flow
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.processes.coordinates import FLOW
from support.gaussian_flow import GaussianFlow
from support.orders import F64

SD, MEAN = 0.5, 0.3
DATA = Gaussian(SD, MEAN)
TRIG = cm.TrigFlow(0.4)


FLOW_OF_DATA = GaussianFlow(MEAN, SD)


def velocity(x, t):
    """E[z - x0 | x_t] of data N(MEAN, SD^2)."""
    return FLOW_OF_DATA.velocity(FLOW, x, t)


def clean(process):
    """E[x0 | x_t] in the coordinates of a process."""
    return partial(FLOW_OF_DATA.clean, process)


FLOWING = from_flow(velocity)


def exact(process, x, t, to):
    """Where the probability-flow ODE takes x."""
    return FLOW_OF_DATA.carried(process, x, t, to)


X = torch.tensor([[-1.0], [0.4], [1.3]], dtype=F64)
EVEN = (32, 64, 128, 256, 512)
THIRDS = (122, 242, 482, 962)  # n = 3 k + 2 for dpm_fast


def even(n, first, last, power=1):
    """Even steps, or small first ones: the Euler step of a multistep method costs no order then."""
    return first + (last - first) * torch.linspace(0, 1, n + 1, dtype=F64) ** power
