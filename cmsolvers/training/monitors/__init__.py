"""Monitors: what a trainer tells of its steps, in tables, TensorBoard and pictures."""

from cmsolvers.training.monitors.csv_log import CSVLog
from cmsolvers.training.monitors.level_bins import LevelBins
from cmsolvers.training.monitors.loss_picture import LossPicture
from cmsolvers.training.monitors.sample_grid import SampleGrid
from cmsolvers.training.monitors.snapshots import Snapshots
from cmsolvers.training.monitors.tensorboard_log import TensorBoardLog

__all__ = ["CSVLog", "LevelBins", "LossPicture", "SampleGrid", "Snapshots", "TensorBoardLog"]
