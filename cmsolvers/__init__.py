"""Solvers and losses for score-based generative models and consistency models."""

from cmsolvers.denoisers import ConsistencyFunction
from cmsolvers.ops import build_info
from cmsolvers.processes import VE, VP, Karras, SubVP
from cmsolvers.schedules import (
    exponential_sigmas,
    karras_sigmas,
    polyexponential_sigmas,
    vp_sigmas,
)
from cmsolvers.sde import SDE
from cmsolvers.solvers import (
    consistency_sample,
    ddim,
    ddpm_ancestral,
    deis,
    dpm_2,
    dpm_2_ancestral,
    dpm_fast,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler_ancestral,
    euler_maruyama,
    euler_pf_ode,
    heun_pf_ode,
    ipndm,
    lms,
    restart,
    unipc,
)

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "VE",
    "VP",
    "ConsistencyFunction",
    "Karras",
    "SubVP",
    "build_info",
    "consistency_sample",
    "ddim",
    "ddpm_ancestral",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_fast",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler_ancestral",
    "euler_maruyama",
    "euler_pf_ode",
    "exponential_sigmas",
    "heun_pf_ode",
    "ipndm",
    "karras_sigmas",
    "lms",
    "polyexponential_sigmas",
    "restart",
    "unipc",
    "vp_sigmas",
]
