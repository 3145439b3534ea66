"""From plain settings to what a training is made of: losses, targets, teachers, optimisers."""

from cmsolvers.runs.building.averages import averages_of
from cmsolvers.runs.building.configured_loss import ConfiguredLoss
from cmsolvers.runs.building.loss_names import RECIPES, usual_kind, usual_target
from cmsolvers.runs.building.named_optimizers import optimizer_of
from cmsolvers.runs.building.rates import schedule_of
from cmsolvers.runs.building.recipe_losses import loss_of, needs_of
from cmsolvers.runs.building.targets import Target, target_of
from cmsolvers.runs.building.teachers import begin_with, digest, spec_like, teacher_of

__all__ = [
    "RECIPES",
    "ConfiguredLoss",
    "Target",
    "averages_of",
    "begin_with",
    "digest",
    "loss_of",
    "needs_of",
    "optimizer_of",
    "schedule_of",
    "spec_like",
    "target_of",
    "teacher_of",
    "usual_kind",
    "usual_target",
]
