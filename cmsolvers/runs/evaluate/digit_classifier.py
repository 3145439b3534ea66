"""A small classifier of the digits: its features are those of their Frechet distance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cmsolvers import noise, ops
from cmsolvers.training import (
    Batch,
    CheckpointError,
    TensorData,
    Trainer,
    TrainingSettings,
    read_checkpoint,
)

KIND = "classifier"
STEPS = 800
"""Of its training."""


class Classifier(nn.Module):
    """Two convolutions and two linear layers; its 32 features are those of the Frechet distance."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(48 * 16, 32),
            nn.SiLU(),
        )
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(32, 10)

    def features(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 32]."""
        result: Tensor = self.layers(x)
        return result

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> logits [B, 10]."""
        result: Tensor = self.last(self.dropout(self.features(x)))
        return result


def classifier_trainer(data: TensorData, steps: int, seed: int) -> Trainer:
    """Cross entropy on labelled digits, with a little noise on them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x = ops.add_noise(batch.x0, 0.05, seed=batch.key, stream=noise.TRAINING, draw=batch.step)
        assert isinstance(x, Tensor) and batch.labels is not None
        return nn.functional.cross_entropy(model(x), batch.labels)

    settings = TrainingSettings(steps, 64, 3e-3, weight_decay=0.02, seed=seed)
    return Trainer(network, loss, data, settings, about={"kind": KIND})


def load_classifier(path: Path) -> Classifier:
    """The classifier of a checkpoint, in evaluation mode.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a damaged checkpoint, or one of something else.
    """
    classifier = Classifier().eval().requires_grad_(False)
    groups, about = read_checkpoint(path)
    if about.get("kind") != KIND:
        raise ValueError(f"path must be the checkpoint of a digits' classifier; got {path}")
    try:
        classifier.load_state_dict(groups["network"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"path must be an undamaged checkpoint; {path}: {error}") from error
    return classifier
