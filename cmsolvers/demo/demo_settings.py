"""What decides the demo's results, and where it keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides the numbers of a demo run.

    Attributes:
        seed: an int; decides everything random.
        samples: how many each sampler makes.
        score_steps: training steps of the score model.
        cd_steps: of consistency distillation.
        ct_steps: of consistency training.
        ect_steps: of easy consistency tuning.
        classifier_steps: of the classifier that judges.
        seeds: how many seeds the spread is taken over.
        candidates: how many noise levels the search for a second and fourth level tries.
        width: of the networks.
    """

    seed: int = 0
    samples: int = 1000
    score_steps: int = 2000
    cd_steps: int = 700
    ct_steps: int = 1500
    ect_steps: int = 700
    classifier_steps: int = 800
    seeds: int = 5
    candidates: int = 10
    width: int = 384

    @staticmethod
    def tiny(seed: int = 0) -> DemoSettings:
        """Seconds instead of minutes: everything runs, nothing is good."""
        return DemoSettings(seed, 40, 30, 10, 24, 12, 20, 2, 3, 32)


@dataclass(frozen=True)
class Files:
    """Paths of the files in the demo's folder."""

    folder: Path

    def model(self, kind: str) -> Path:
        """Checkpoint of "classifier", "score", "cd", "ct" or "ect"."""
        return self.folder / kind

    def picture(self, name: str) -> Path:
        """PNG with the picture of this name."""
        return self.folder / f"{name}.png"
