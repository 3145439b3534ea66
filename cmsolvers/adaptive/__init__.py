"""Error-controlled solvers: every sample has its own steps, and its result is its own."""

from cmsolvers.adaptive.dpm import dpm_adaptive
from cmsolvers.adaptive.errors import AdaptiveInfo, SolverError
from cmsolvers.adaptive.rk import rk_pf_ode
from cmsolvers.adaptive.sde import adaptive_sde

__all__ = ["AdaptiveInfo", "SolverError", "adaptive_sde", "dpm_adaptive", "rk_pf_ode"]
