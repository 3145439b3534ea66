"""Names of everything that losses take besides numbers: distributions, weights, norms, rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cmsolvers import losses
from cmsolvers.losses import loss_table
from cmsolvers.losses.evaluation.recipe import Loss
from cmsolvers.schedules import karras_sigmas
from cmsolvers.training.named_options import known_name

Table = Mapping[str, Callable[..., Any]]
"""Name -> what makes it, called with options."""

RECIPES: dict[str, Loss] = {one.recipe.name: one for one in loss_table.losses()}
"""Every recipe of the library."""


def _uniform_pairs(
    count: int = 40, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> losses.UniformPairs:
    """Neighbours of a Karras grid of `count` levels, each pair equally likely."""
    grid = karras_sigmas(count, sigma_min, sigma_max, rho, append_zero=False)
    return losses.UniformPairs(grid)


def _log_normal_pairs(
    count: int = 40,
    rho: float = 7.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    mean: float = -1.1,
    std: float = 2.0,
) -> losses.LogNormalPairs:
    """Neighbours of a Karras grid of `count` levels, by a lognormal."""
    grid = karras_sigmas(count, sigma_min, sigma_max, rho, append_zero=False)
    return losses.LogNormalPairs(grid, mean, std)


DISTRIBUTIONS: dict[str, type[losses.Distribution[Any]]] = {
    "angle_pairs": losses.AnglePairs,
    "annealed_pairs": losses.AnnealedPairs,
    "chain_pairs": losses.ChainPairs,
    "doubling_pairs": losses.DoublingPairs,
    "dyadic_pairs": losses.DyadicPairs,
    "ect_pairs": losses.ECTPairs,
    "gap_pairs": losses.GapPairs,
    "intervals": losses.Intervals,
    "log_normal": losses.LogNormal,
    "log_normal_pairs": losses.LogNormalPairs,
    "logit_normal": losses.LogitNormal,
    "logit_normal_ends": losses.LogitNormalEnds,
    "logit_normal_pairs": losses.LogitNormalPairs,
    "power_law": losses.PowerLaw,
    "rho_pairs": losses.RhoPairs,
    "square_root_pairs": losses.SquareRootPairs,
    "truncated_pairs": losses.TruncatedPairs,
    "u_shaped": losses.UShaped,
    "uniform": losses.Uniform,
    "uniform_pairs": losses.UniformPairs,
    "uniform_times": losses.UniformTimes,
}
"""Distributions of levels, `times = {name = ..., ...}`."""

FROM_GRIDS: Table = {"uniform_pairs": _uniform_pairs, "log_normal_pairs": _log_normal_pairs}
"""Those that are made of a grid, which plain data give by its number of levels."""

LEVEL_WEIGHTS: Table = {
    "edm_weight": losses.edm_weight,
    "flow_velocity": lambda: losses.flow_velocity,
    "inverse_tangent": losses.inverse_tangent,
    "power_law_rate": losses.power_law_rate,
    "snr_plus_one": lambda: losses.snr_plus_one,
    "truncated_snr": lambda: losses.truncated_snr,
}
"""Weights of one level."""

PAIR_WEIGHTS: Table = {
    "inverse_gap": lambda: losses.inverse_gap,
    "one": lambda: losses.one,
}
"""Weights of two levels."""

NORMS: Table = {
    "elementwise_huber": losses.elementwise_huber,
    "mean_abs": lambda: losses.mean_abs,
    "mean_square": lambda: losses.mean_square,
    "norm": lambda: losses.norm,
    "pseudo_huber": losses.pseudo_huber,
    "square_sum": lambda: losses.square_sum,
}
"""Distances of a residual."""

DISTANCES: Table = {
    **NORMS,
    "lpips_distance": lambda net="vgg", size=224: losses.lpips_distance(net, size=size),
}
"""Norms, and distances of two batches."""

TANGENTS: Table = {
    "clamped": losses.Clamped,
    "normalised": losses.Normalised,
    "unchanged": lambda: losses.unchanged,
}
"""Rules of tangents."""

SCHEDULES: Table = {
    "exponential": losses.ExponentialSchedule,
    "sigmoid": losses.SigmoidSchedule,
}
"""Numbers that change with the training."""

HALFWAY: Table = {
    "angle": lambda: losses.halfway_angle,
    "level": lambda: losses.halfway_level,
    "rho": losses.halfway_rho,
}
"""Levels between two others."""

GUIDANCE: Table = {"guidance": losses.Guidance, "mixed": losses.MixedGuidance}
"""Guidance in the velocity that is learnt."""

PRESETS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "alpha_flow": losses.ALPHA_FLOW,
    "meanflow": losses.MEANFLOW,
    "soflow": losses.SOFLOW,
}
"""Published settings, `preset = "cifar"`, by recipe."""

KINDS = {
    ("denoiser", "karras"): "edm",
    ("denoiser", "flow"): "flow",
    ("denoiser", "trigflow"): "trigflow_velocity",
    ("consistency", "karras"): "consistency",
    ("consistency", "trigflow"): "trigflow",
    ("flow map", "karras"): "trajectory",
    ("flow map", "flow"): "average_velocity",
    ("flow map", "trigflow"): "trigflow_map",
}
"""The kind of model that a recipe trains, by what it says of itself."""

OTHER_KINDS = {"flow_matching": "flow", "reflow": "flow", "imf": "velocity_heads"}
"""Recipes that train another one: of a flow's map only the diagonal would be trained."""


def usual_kind(name: str) -> str:
    """The kind of model (of `training.model_wrappers.WRAPPERS`) that a recipe trains as a rule.

    Raises:
        ValueError: an unknown name.
    """
    about = RECIPES[known_name("loss", name, RECIPES)].recipe
    return OTHER_KINDS.get(name, KINDS[about.model, about.coordinates])


USUAL_TARGETS: dict[str, object] = {
    "cd": {"name": "ema", "decay": 0.95},
    "ct": {"name": "ema", "curriculum": "cm"},
    "lcm": {"name": "ema", "decay": 0.95},
    "mcd": {"name": "ema", "decay": 0.95},
    "ctm": {"name": "ema", "decay": 0.95},
    "shortcut": {"name": "ema", "decay": 0.99},
    "tvm": {"name": "ema", "decay": 0.99},
}
"""What stands on the other side of a loss where it is not the model itself."""


def usual_target(name: str) -> object:
    """The target of a recipe as a rule, as `target_of` takes it."""
    return USUAL_TARGETS.get(name, "self")
