"""Gaussian processes x_t = alpha(t) x_0 + sigma(t) z: coefficients, marginals, reverse SDE and ODE.

Time is a Python float or a tensor. A float gives a float back; a tensor gives a float64 tensor of
its shape back.
"""

from cmsolvers.processes.continuous import VE, VP, Karras, SubVP
from cmsolvers.processes.ddpm import DDPM
from cmsolvers.processes.flows import RectifiedFlow, TrigFlow
from cmsolvers.processes.sde import Process

__all__ = ["DDPM", "VE", "VP", "Karras", "Process", "RectifiedFlow", "SubVP", "TrigFlow"]
