"""Losses: denoising score matching, consistency distillation, consistency training."""

from cmsolvers.losses.consistency import consistency_distillation, consistency_training, ict_weight
from cmsolvers.losses.distances import Distance, get_distance, l1, l2, lpips_distance, pseudo_huber
from cmsolvers.losses.randomness import SameRandomness
from cmsolvers.losses.score import denoising_score_matching, edm_weight

__all__ = [
    "Distance",
    "SameRandomness",
    "consistency_distillation",
    "consistency_training",
    "denoising_score_matching",
    "edm_weight",
    "get_distance",
    "ict_weight",
    "l1",
    "l2",
    "lpips_distance",
    "pseudo_huber",
]
