"""Training: data, curricula, averages in float32, and a loop that resumes bit for bit."""

from cmsolvers.losses.times.curricula import cm_discretization, cm_ema_rate, doubling_discretization
from cmsolvers.training.averages import (
    EMA,
    PowerDecay,
    Reconstruction,
    power_decay,
    reconstruct_average,
    update_averages,
)
from cmsolvers.training.captured_step import CapturedStep, capture_step
from cmsolvers.training.checkpoints import (
    CheckpointError,
    RunFolder,
    read_checkpoint,
    write_checkpoint,
)
from cmsolvers.training.data import (
    Batch,
    StepLoader,
    TensorData,
    TrainingData,
    batch_at,
    open_data,
    user_batches,
)
from cmsolvers.training.reports import Monitor, PeriodicMonitor, StepReport
from cmsolvers.training.trainer import Trainer
from cmsolvers.training.training_settings import TrainingSettings

__all__ = [
    "EMA",
    "Batch",
    "CapturedStep",
    "CheckpointError",
    "Monitor",
    "PeriodicMonitor",
    "PowerDecay",
    "Reconstruction",
    "RunFolder",
    "StepReport",
    "StepLoader",
    "TensorData",
    "Trainer",
    "TrainingData",
    "TrainingSettings",
    "batch_at",
    "capture_step",
    "cm_discretization",
    "cm_ema_rate",
    "doubling_discretization",
    "open_data",
    "power_decay",
    "read_checkpoint",
    "reconstruct_average",
    "update_averages",
    "user_batches",
    "write_checkpoint",
]
