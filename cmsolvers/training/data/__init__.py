"""Data of a training: sources, the order of samples, augmentation, batches."""

from cmsolvers.training.data.array_images import array_file, load_images
from cmsolvers.training.data.batches import Batch, as_data, batch_at
from cmsolvers.training.data.data_protocol import TrainingData, describe
from cmsolvers.training.data.digit_data import digits
from cmsolvers.training.data.named_sources import open_data
from cmsolvers.training.data.order import batch_indices
from cmsolvers.training.data.picture_folder import image_folder
from cmsolvers.training.data.pixel_scale import SIGMA_DATA, Scale
from cmsolvers.training.data.saved_datasets import arrow_folder
from cmsolvers.training.data.step_loader import StepLoader
from cmsolvers.training.data.stream_places import torch_seed
from cmsolvers.training.data.tensor_data import TensorData
from cmsolvers.training.data.toy_points import toys
from cmsolvers.training.data.user_loaders import user_batches

__all__ = [
    "SIGMA_DATA",
    "Batch",
    "Scale",
    "StepLoader",
    "TensorData",
    "TrainingData",
    "array_file",
    "arrow_folder",
    "as_data",
    "batch_at",
    "batch_indices",
    "describe",
    "digits",
    "image_folder",
    "load_images",
    "open_data",
    "torch_seed",
    "toys",
    "user_batches",
]
