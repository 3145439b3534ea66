"""Averages of a network: moved at every step, and put together after the training."""

from cmsolvers.training.averages.ema import (
    EMA,
    Decay,
    check_averages,
    move_averages,
    update_averages,
)
from cmsolvers.training.averages.post_hoc import Reconstruction, Snapshot, reconstruct
from cmsolvers.training.averages.power_decay import PowerDecay, power_decay
from cmsolvers.training.averages.profiles import Fit, Profile, fit, overlap
from cmsolvers.training.averages.snapshot_folder import (
    STORED,
    SnapshotFolder,
    narrowed,
    reconstruct_average,
)

__all__ = [
    "EMA",
    "STORED",
    "Decay",
    "Fit",
    "PowerDecay",
    "Profile",
    "Reconstruction",
    "Snapshot",
    "SnapshotFolder",
    "check_averages",
    "fit",
    "move_averages",
    "narrowed",
    "overlap",
    "power_decay",
    "reconstruct",
    "reconstruct_average",
    "update_averages",
]
