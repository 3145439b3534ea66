"""Samplers, solvers and losses for score-based generative models and consistency models.

Samplers, `sampler(denoiser, x, sigmas, seed=...)`: euler_pf_ode heun_pf_ode dpm_2 dpm_fast lms ddim
    ddpm_ancestral euler_ancestral dpm_2_ancestral dpmpp_2m dpmpp_2s_ancestral dpmpp_sde
    dpmpp_2m_sde dpmpp_3m_sde unipc deis ipndm restart flow_sde cps
    dpm_adaptive rk_pf_ode consistency_sample
Flow maps, `flow_map_sample(f, x, times, gamma=..., seed=...)`
Solvers in time, `solver(sde, x, ts, seed=...)`: euler_maruyama milstein stochastic_heun sra1
    predictor_corrector adaptive_sde
Whole runs as CUDA graphs: capture; densities of steps: step_log_prob
Levels: karras_sigmas exponential_sigmas polyexponential_sigmas vp_sigmas ddpm_sigmas flow_times
    flow_sigmas cosine_sigmas beta_sigmas
Processes: VP SubVP VE Karras DDPM RectifiedFlow TrigFlow SDE
Networks: EDM ConsistencyFunction AverageVelocity TrigFlowMap TrajectoryFunction, and in
    `cmsolvers.denoisers` from_eps from_v from_x0 from_score
    from_flow from_trigflow guided autoguided clipped thresholded
More: `cmsolvers.noise`, `losses`, `training`, `tasks` (editing, likelihoods, metrics), `ops`
    (single fused steps), `engine` (write your own solver)

`help(cmsolvers.heun_pf_ode)` documents a sampler completely.
"""

# Before all others: Ctrl-C while torch is imported ends the command in one line.
from cmsolvers import starting as starting

# isort: split

# Without __all__ help(cmsolvers) does not print every function's own help.
from cmsolvers.denoisers import EDM as EDM
from cmsolvers.denoisers import AverageVelocity as AverageVelocity
from cmsolvers.denoisers import ConsistencyFunction as ConsistencyFunction
from cmsolvers.denoisers import FlowMap as FlowMap
from cmsolvers.denoisers import TrajectoryFunction as TrajectoryFunction
from cmsolvers.denoisers import TrigFlowMap as TrigFlowMap
from cmsolvers.denoisers import oracles as oracles
from cmsolvers.engine.adaptive import AdaptiveInfo as AdaptiveInfo
from cmsolvers.engine.adaptive import SolverError as SolverError
from cmsolvers.engine.capture import capture as capture
from cmsolvers.engine.observers import Info as Info
from cmsolvers.engine.step_log_prob import step_log_prob as step_log_prob
from cmsolvers.ops import build_info as build_info
from cmsolvers.processes import DDPM as DDPM
from cmsolvers.processes import VE as VE
from cmsolvers.processes import VP as VP
from cmsolvers.processes import Karras as Karras
from cmsolvers.processes import RectifiedFlow as RectifiedFlow
from cmsolvers.processes import SubVP as SubVP
from cmsolvers.processes import TrigFlow as TrigFlow
from cmsolvers.processes.sde import SDE as SDE
from cmsolvers.schedules import beta_sigmas as beta_sigmas
from cmsolvers.schedules import cosine_sigmas as cosine_sigmas
from cmsolvers.schedules import ddpm_sigmas as ddpm_sigmas
from cmsolvers.schedules import exponential_sigmas as exponential_sigmas
from cmsolvers.schedules import flow_sigmas as flow_sigmas
from cmsolvers.schedules import flow_times as flow_times
from cmsolvers.schedules import karras_sigmas as karras_sigmas
from cmsolvers.schedules import polyexponential_sigmas as polyexponential_sigmas
from cmsolvers.schedules import vp_sigmas as vp_sigmas
from cmsolvers.solvers import adaptive_sde as adaptive_sde
from cmsolvers.solvers import consistency_sample as consistency_sample
from cmsolvers.solvers import cps as cps
from cmsolvers.solvers import ddim as ddim
from cmsolvers.solvers import ddpm_ancestral as ddpm_ancestral
from cmsolvers.solvers import deis as deis
from cmsolvers.solvers import dpm_2 as dpm_2
from cmsolvers.solvers import dpm_2_ancestral as dpm_2_ancestral
from cmsolvers.solvers import dpm_adaptive as dpm_adaptive
from cmsolvers.solvers import dpm_fast as dpm_fast
from cmsolvers.solvers import dpmpp_2m as dpmpp_2m
from cmsolvers.solvers import dpmpp_2m_sde as dpmpp_2m_sde
from cmsolvers.solvers import dpmpp_2s_ancestral as dpmpp_2s_ancestral
from cmsolvers.solvers import dpmpp_3m_sde as dpmpp_3m_sde
from cmsolvers.solvers import dpmpp_sde as dpmpp_sde
from cmsolvers.solvers import euler_ancestral as euler_ancestral
from cmsolvers.solvers import euler_maruyama as euler_maruyama
from cmsolvers.solvers import euler_pf_ode as euler_pf_ode
from cmsolvers.solvers import flow_map_sample as flow_map_sample
from cmsolvers.solvers import flow_sde as flow_sde
from cmsolvers.solvers import heun_pf_ode as heun_pf_ode
from cmsolvers.solvers import ipndm as ipndm
from cmsolvers.solvers import lms as lms
from cmsolvers.solvers import milstein as milstein
from cmsolvers.solvers import predictor_corrector as predictor_corrector
from cmsolvers.solvers import restart as restart
from cmsolvers.solvers import rk_pf_ode as rk_pf_ode
from cmsolvers.solvers import sra1 as sra1
from cmsolvers.solvers import stochastic_heun as stochastic_heun
from cmsolvers.solvers import unipc as unipc
from cmsolvers.version import __version__ as __version__
