"""The judge of samples: a small digit classifier, and the numbers measured with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cmsolvers import noise, ops
from cmsolvers.demo.demo_results import Quality, RealQuality
from cmsolvers.demo.digits import Digits
from cmsolvers.tasks import metrics
from cmsolvers.training import Batch, TensorData, Trainer, TrainingSettings, read_checkpoint


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


def classifier_trainer(data: Digits, steps: int, seed: int) -> Trainer:
    """Cross entropy on the training digits, with a little noise on them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x = ops.add_noise(batch.x0, 0.05, seed=batch.key, stream=noise.TRAINING, draw=batch.step)
        assert isinstance(x, Tensor) and batch.labels is not None
        return nn.functional.cross_entropy(model(x), batch.labels)

    settings = TrainingSettings(steps, 64, 3e-3, weight_decay=0.02, seed=seed)
    labelled = TensorData(data.train, data.train_labels)
    return Trainer(network, loss, labelled, settings, about={"kind": "classifier"})


@dataclass(frozen=True)
class Judge:
    """Measures the numbers of the report.

    Frechet distances are to the held-out digits, nearest neighbours are looked for in the training
    digits.
    """

    classifier: Classifier
    data: Digits
    held_features: Tensor
    held_confidence: float

    @staticmethod
    def load(path: Path, data: Digits) -> Judge:
        """A judge with the classifier of a checkpoint.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a checkpoint of something else.
        """
        classifier = Classifier().eval().requires_grad_(False)
        groups, about = read_checkpoint(path)
        if about.get("kind") != "classifier":
            raise ValueError(f"path must be the checkpoint of a demo's classifier; got {path}")
        try:
            classifier.load_state_dict(groups["network"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"path must be an undamaged checkpoint; {path}: {error}") from error
        sure = float(metrics.confidence(classifier(data.held)).mean())
        return Judge(classifier, data, classifier.features(data.held), sure)

    def frechet(self, x: Tensor, *, to_train: bool = False) -> float:
        """Frechet distance of samples to the held-out (or the training) digits."""
        real = self.classifier.features(self.data.train) if to_train else self.held_features
        return metrics.frechet_distance(self.classifier.features(x), real)

    def numbers(self, x: Tensor) -> Quality:
        """Frechet distance, confidence relative to held-out digits, nearest neighbour, shares."""
        logits = self.classifier(x)
        sure = float(metrics.confidence(logits).mean())
        return {
            "frechet": self.frechet(x),
            "confidence": sure,
            "confidence_relative": sure / self.held_confidence,
            "nearest_train": float(metrics.nearest_distance(x, self.data.train).mean()),
            "class_shares": metrics.class_shares(logits).tolist(),
        }

    def baseline(self) -> RealQuality:
        """Numbers of real digits: accuracy, and the floor of the Frechet distance."""
        logits = self.classifier(self.data.held)
        right = (logits.argmax(1) == self.data.held_labels).double().mean()
        return {
            "accuracy": float(right),
            "confidence": self.held_confidence,
            "frechet_floor": self.frechet(self.data.train),
            "nearest_train": float(
                metrics.nearest_distance(self.data.held, self.data.train).mean()
            ),
        }
