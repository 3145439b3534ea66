"""Training: curricula, levels, an EMA in float32, and a small loop that resumes bit for bit."""

from cmsolvers.training.batches import Batch, batch_at
from cmsolvers.training.checkpoint import read_checkpoint, write_checkpoint
from cmsolvers.training.curricula import (
    cm_discretization,
    cm_ema_rate,
    doubling_discretization,
)
from cmsolvers.training.ema import EMA
from cmsolvers.training.trainer import Trainer
from cmsolvers.training.training_settings import TrainingSettings

__all__ = [
    "EMA",
    "Batch",
    "Trainer",
    "TrainingSettings",
    "batch_at",
    "cm_discretization",
    "cm_ema_rate",
    "doubling_discretization",
    "read_checkpoint",
    "write_checkpoint",
]
