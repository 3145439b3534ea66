"""Checkpoints as folders of safetensors and JSON: verified, written durably, kept by a run."""

from cmsolvers.training.checkpoints.disk import replace_file
from cmsolvers.training.checkpoints.errors import CheckpointError
from cmsolvers.training.checkpoints.finite import check_finite
from cmsolvers.training.checkpoints.folders import group_names, read_checkpoint, write_checkpoint
from cmsolvers.training.checkpoints.lock import FolderInUseError
from cmsolvers.training.checkpoints.optimizer_state import (
    checked_optimizer_state,
    describe_optimizer,
    hyperparameters,
    load_optimizer_tensors,
    optimizer_tensors,
    set_optimizer_state,
)
from cmsolvers.training.checkpoints.run_folder import Found, RunFolder
from cmsolvers.training.checkpoints.tensor_file import stored_bytes

__all__ = [
    "CheckpointError",
    "FolderInUseError",
    "Found",
    "RunFolder",
    "check_finite",
    "checked_optimizer_state",
    "describe_optimizer",
    "group_names",
    "hyperparameters",
    "load_optimizer_tensors",
    "optimizer_tensors",
    "read_checkpoint",
    "replace_file",
    "set_optimizer_state",
    "stored_bytes",
    "write_checkpoint",
]
