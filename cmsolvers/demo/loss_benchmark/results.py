"""Results of the benchmark: one per recipe, problem and seed, each in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cmsolvers.demo.loss_benchmark.measures import Measured
from cmsolvers.demo.loss_benchmark.setting import Setting
from cmsolvers.ops import build_info


@dataclass(frozen=True)
class Result:
    """What one training gave.

    Attributes:
        recipe: name of the entry.
        family: of the entry.
        problem: name of the problem.
        seed: of the training.
        setting: its course.
        quality: by the number of steps.
        steps: of the optimiser.
        calls: of networks on one batch.
        seconds: of processor time.
        loss: the mean over the last tenth of the steps.
        failure: why it stopped early, if it did.
    """

    recipe: str
    family: str
    problem: str
    seed: int
    setting: Setting
    quality: dict[int, Measured]
    steps: int
    calls: float
    seconds: float
    loss: float
    failure: str | None

    def save(self, folder: Path) -> None:
        """Write the file of this result, whole or not at all."""
        path = file_of(folder, self.recipe, self.problem, self.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n")
        unfinished.replace(path)


def file_of(folder: Path, recipe: str, problem: str, seed: int) -> Path:
    """Where a result lies."""
    return folder / "runs" / f"{recipe}-{problem}-{seed}.json"


def load(folder: Path, recipe: str, problem: str, seed: int, setting: Setting) -> Result | None:
    """The result of an earlier run with the same setting; None where there is none."""
    path = file_of(folder, recipe, problem, seed)
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    if found["setting"] != asdict(setting):
        return None
    quality = {int(steps): Measured(**value) for steps, value in found["quality"].items()}
    return Result(**(found | {"setting": setting, "quality": quality}))


@dataclass(frozen=True)
class Facts:
    """What is known of a problem before any training.

    Attributes:
        size: elements per sample.
        modes: components.
        floor: distance of two sets of exact samples, the least that a perfect model has.
    """

    size: int
    modes: int
    floor: float


def write(
    path: Path, results: Sequence[Result], problems: dict[str, Facts], setting: Setting
) -> Path:
    """All results in one JSON file."""
    rows = []
    for result in results:
        row = asdict(result)
        del row["setting"]
        rows.append(row)
    about = {
        "version": build_info()["version"],
        "torch": torch.__version__,
        "setting": asdict(setting),
        "problems": {name: asdict(facts) for name, facts in problems.items()},
    }
    path.write_text(json.dumps(about | {"results": rows}, indent=1) + "\n")
    return path
