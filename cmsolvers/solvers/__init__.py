"""Samplers: each a formula, a citation and weights."""

from cmsolvers.solvers.consistency import consistency_sample
from cmsolvers.solvers.ddim import ddim, ddpm_ancestral
from cmsolvers.solvers.euler import euler_pf_ode
from cmsolvers.solvers.euler_maruyama import euler_maruyama
from cmsolvers.solvers.heun import heun_pf_ode

__all__ = [
    "consistency_sample",
    "ddim",
    "ddpm_ancestral",
    "euler_maruyama",
    "euler_pf_ode",
    "heun_pf_ode",
]
