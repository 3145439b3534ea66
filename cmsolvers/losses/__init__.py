"""Losses: every published few-step method as a formula over one flow map, and what they share.

A loss is `loss(model, x0, *, key, step, teacher=None, target=None, ...) -> LossOutput`. Beside the
losses here are the distributions of levels, weights and norms that they take, and the decorator
`loss` that makes one of a formula over an `Evaluation`. `loss_table.losses()` lists all.
"""

from cmsolvers.losses import recipes
from cmsolvers.losses.evaluation.combination import Combination
from cmsolvers.losses.evaluation.decorator import loss
from cmsolvers.losses.evaluation.evaluation import Evaluation
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.evaluation.output import LossOutput
from cmsolvers.losses.evaluation.randomness import SameRandomness
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.perceptual import Between, lpips_distance
from cmsolvers.losses.formulas.tangents import (
    Clamped,
    Normalised,
    inverse_tangent,
    normalised,
    power_law_rate,
    unchanged,
)
from cmsolvers.losses.formulas.velocity_guidance import Guidance, GuidanceInputs, MixedGuidance
from cmsolvers.losses.formulas.weights import (
    adaptive,
    edm_weight,
    elementwise_huber,
    inverse_gap,
    mean_abs,
    mean_square,
    norm,
    one,
    pseudo_huber,
    square_sum,
)
from cmsolvers.losses.recipes import *  # noqa: F403 - their names are those of recipes.__all__
from cmsolvers.losses.recipes.average_velocity import MEANFLOW
from cmsolvers.losses.recipes.discrete_velocity import (
    ALPHA_FLOW,
    SOFLOW,
    ExponentialSchedule,
    SigmoidSchedule,
)
from cmsolvers.losses.recipes.progressive import (
    flow_velocity,
    halfway_angle,
    halfway_level,
    halfway_rho,
    snr_plus_one,
    truncated_snr,
)
from cmsolvers.losses.recipes.terminal_velocity import ScaledVelocity
from cmsolvers.losses.times.basic_times import (
    LogitNormal,
    LogitNormalPairs,
    LogNormal,
    LogNormalPairs,
    UniformPairs,
)
from cmsolvers.losses.times.consistency_times import (
    AnnealedPairs,
    ChainPairs,
    DoublingPairs,
    ECTPairs,
    SquareRootPairs,
)
from cmsolvers.losses.times.continuous_times import Intervals, PowerLaw
from cmsolvers.losses.times.curricula import cm_discretization, cm_ema_rate, doubling_discretization
from cmsolvers.losses.times.distribution import Distribution
from cmsolvers.losses.times.flow_times import (
    AnglePairs,
    DyadicPairs,
    LogitNormalEnds,
    Uniform,
    UShaped,
)
from cmsolvers.losses.times.trajectory_times import (
    GapPairs,
    RhoPairs,
    UniformTimes,
)
from cmsolvers.losses.times.truncated_times import TruncatedPairs

__all__ = [
    "ALPHA_FLOW",
    "MEANFLOW",
    "SOFLOW",
    "AnglePairs",
    "AnnealedPairs",
    "Between",
    "ChainPairs",
    "Clamped",
    "Combination",
    "Distribution",
    "DoublingPairs",
    "DyadicPairs",
    "ECTPairs",
    "Evaluation",
    "ExponentialSchedule",
    "GapPairs",
    "Guidance",
    "GuidanceInputs",
    "Intervals",
    "LabelDropout",
    "LogNormal",
    "LogNormalPairs",
    "LogitNormal",
    "LogitNormalEnds",
    "LogitNormalPairs",
    "LossOutput",
    "MixedGuidance",
    "Normalised",
    "PowerLaw",
    "RhoPairs",
    "SameRandomness",
    "ScaledVelocity",
    "SigmoidSchedule",
    "SquareRootPairs",
    "State",
    "TruncatedPairs",
    "UShaped",
    "Uniform",
    "UniformPairs",
    "UniformTimes",
    "adaptive",
    "cm_discretization",
    "cm_ema_rate",
    "doubling_discretization",
    "edm_weight",
    "elementwise_huber",
    "flow_velocity",
    "halfway_angle",
    "halfway_level",
    "halfway_rho",
    "inverse_gap",
    "inverse_tangent",
    "loss",
    "lpips_distance",
    "mean_abs",
    "mean_square",
    "norm",
    "normalised",
    "one",
    "power_law_rate",
    "pseudo_huber",
    "snr_plus_one",
    "square_sum",
    "truncated_snr",
    "unchanged",
]
__all__ += recipes.__all__
