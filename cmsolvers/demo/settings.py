"""What decides the demo's results, and what it aims at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    classifier_steps: int = 800
    seeds: int = 5
    candidates: int = 10
    width: int = 384

    @staticmethod
    def tiny(seed: int = 0) -> DemoSettings:
        """Seconds instead of minutes: everything runs, nothing is good."""
        return DemoSettings(seed, 40, 30, 10, 24, 20, 2, 3, 32)


@dataclass(frozen=True)
class Files:
    """Names in the demo's folder."""

    folder: Path

    def model(self, kind: str) -> Path:
        """Checkpoint of "classifier", "score", "cd" or "ct"."""
        return self.folder / f"{kind}.safetensors"

    def picture(self, name: str) -> Path:
        """A PNG."""
        return self.folder / f"{name}.png"


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the demo promises, and whether this run kept it."""
    one = {(row["method"], row["steps"]): row for row in results["samplers"]}
    spread = results["seeds"]
    heun, cd, ct = one["heun", 18], one["cd", 1], one["ct", 1]
    shares = heun["class_shares"]
    fewer, more = spread["cd 1"], spread["cd 2"]
    slack = max(fewer["std"], more["std"])
    checks = (
        (
            "Heun, 18 steps: confidence relative to held-out",
            heun["confidence_relative"],
            ">=",
            0.95,
        ),
        ("Heun, 18 steps: smallest class share", min(shares), ">=", 0.04),
        ("Heun, 18 steps: largest class share", max(shares), "<=", 0.20),
        ("CD, 1 step: confidence relative to held-out", cd["confidence_relative"], ">=", 0.93),
        ("CD, 1 step: Frechet distance / Heun's", cd["frechet"] / heun["frechet"], "<=", 3.0),
        ("CD, 1 step: classes present", sum(s > 0 for s in cd["class_shares"]), ">=", 10),
        (
            "CD, 2 steps: mean Frechet distance over seeds",
            more["mean"],
            "<=",
            fewer["mean"] + slack,
        ),
        ("CT, 1 step: classes present", sum(s > 0 for s in ct["class_shares"]), ">=", 10),
        ("CT, 1 step: Frechet distance / Heun's", ct["frechet"] / heun["frechet"], "<=", 8.0),
        ("CT, 2 steps: Frechet distance", one["ct", 2]["frechet"], "<=", ct["frechet"]),
        (
            "CT, 2 steps: mean Frechet distance over seeds",
            spread["ct 2"]["mean"],
            "<=",
            spread["ct 1"]["mean"],
        ),
    )
    return [
        {
            "what": what,
            "value": value,
            "relation": relation,
            "bound": bound,
            "kept": value >= bound if relation == ">=" else value <= bound,
        }
        for what, value, relation, bound in checks
    ]
