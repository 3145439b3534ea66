"""Denoisers D(x, sigma) -> x0: from networks, from other denoisers, and exact ones.

`from_*` and `EDM` wrap a network; `guided`, `autoguided`, `clipped` and `thresholded` wrap other
denoisers; `to_*` lead from a denoiser back to eps, v, score, flow and F. The modules `guidance`,
`clipping`, `conversions` and `oracles` hold them family by family. Flow maps f(x, t, s) are
`AverageVelocity`, `TrigFlowMap` and `TrajectoryFunction`.
"""

from cmsolvers.denoisers import clipping, conversions, guidance, oracles
from cmsolvers.denoisers.clipping import clipped, thresholded
from cmsolvers.denoisers.flow_maps import AverageVelocity, FlowMap, TrajectoryFunction, TrigFlowMap
from cmsolvers.denoisers.from_network import (
    EDM,
    Coefficients,
    ConsistencyFunction,
    Preconditioned,
    edm_noise,
    from_eps,
    from_flow,
    from_score,
    from_trigflow,
    from_v,
    from_x0,
    published_noise,
)
from cmsolvers.denoisers.guidance import autoguided, guided
from cmsolvers.denoisers.latent_consistency import LatentConsistencyFunction
from cmsolvers.denoisers.protocol import Denoiser
from cmsolvers.denoisers.second_time import step_index
from cmsolvers.denoisers.velocity_heads import VelocityHeads

__all__ = [
    "EDM",
    "AverageVelocity",
    "Coefficients",
    "ConsistencyFunction",
    "Denoiser",
    "FlowMap",
    "LatentConsistencyFunction",
    "Preconditioned",
    "TrajectoryFunction",
    "TrigFlowMap",
    "VelocityHeads",
    "autoguided",
    "clipped",
    "clipping",
    "conversions",
    "edm_noise",
    "from_eps",
    "from_flow",
    "from_score",
    "from_trigflow",
    "from_v",
    "from_x0",
    "guidance",
    "guided",
    "oracles",
    "published_noise",
    "step_index",
    "thresholded",
]
