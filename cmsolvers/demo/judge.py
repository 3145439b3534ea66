"""The judge of samples: a small digit classifier, and the numbers measured with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cmsolvers.demo.demo_results import Quality, RealQuality
from cmsolvers.demo.digits import Digits
from cmsolvers.runs.evaluate import digit_classifier
from cmsolvers.runs.evaluate.digit_classifier import Classifier, load_classifier
from cmsolvers.tasks import metrics
from cmsolvers.training import TensorData, Trainer


def classifier_trainer(data: Digits, steps: int, seed: int) -> Trainer:
    """The training of the classifier on the demo's training digits."""
    return digit_classifier.classifier_trainer(
        TensorData(data.train, data.train_labels), steps, seed
    )


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
        classifier = load_classifier(path)
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
