"""Samplers: each a formula, a citation and weights."""

from cmsolvers.solvers.adaptive_sde import adaptive_sde
from cmsolvers.solvers.ancestral import euler_ancestral
from cmsolvers.solvers.cps import cps
from cmsolvers.solvers.ddim import ddim, ddpm_ancestral
from cmsolvers.solvers.deis import deis, ipndm
from cmsolvers.solvers.dpm import dpm_2, dpm_2_ancestral, dpm_fast
from cmsolvers.solvers.dpm_adaptive import dpm_adaptive
from cmsolvers.solvers.dpmpp import dpmpp_2m, dpmpp_2s_ancestral
from cmsolvers.solvers.dpmpp_sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from cmsolvers.solvers.euler import euler_pf_ode
from cmsolvers.solvers.euler_maruyama import euler_maruyama
from cmsolvers.solvers.flow_map_sample import flow_map_sample
from cmsolvers.solvers.flow_sde import flow_sde
from cmsolvers.solvers.heun import heun_pf_ode
from cmsolvers.solvers.lms import lms
from cmsolvers.solvers.milstein import milstein
from cmsolvers.solvers.multistep_consistency import consistency_sample
from cmsolvers.solvers.predictor_corrector import predictor_corrector
from cmsolvers.solvers.restart import restart
from cmsolvers.solvers.rk_pf_ode import rk_pf_ode
from cmsolvers.solvers.sra1 import sra1
from cmsolvers.solvers.stochastic_heun import stochastic_heun
from cmsolvers.solvers.unipc import unipc

__all__ = [
    "adaptive_sde",
    "consistency_sample",
    "cps",
    "ddim",
    "ddpm_ancestral",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_adaptive",
    "dpm_fast",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler_ancestral",
    "euler_maruyama",
    "euler_pf_ode",
    "flow_map_sample",
    "flow_sde",
    "heun_pf_ode",
    "ipndm",
    "lms",
    "milstein",
    "predictor_corrector",
    "restart",
    "rk_pf_ode",
    "sra1",
    "stochastic_heun",
    "unipc",
]
