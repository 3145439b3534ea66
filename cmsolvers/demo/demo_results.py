"""What a run of the demo measures: the content of metrics.json, and the targets it should meet."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from cmsolvers.demo.heun_errors import HeunErrors


class Training(TypedDict):
    """The loss of every step of a training, and how long it took.

    `bands`, where there are, are its means in bands of noise levels, as `LossByLevel` notes them.
    """

    losses: list[float]
    seconds: float
    bands: NotRequired[list[list[float]]]


class Quality(TypedDict):
    """What the judge says of samples; `cmsolvers.demo.judge` says how it is measured."""

    frechet: float
    confidence: float
    confidence_relative: float
    nearest_train: float
    class_shares: list[float]


class SamplerRow(Quality):
    """One sampler with one number of steps; `levels` is for consistency models."""

    method: str
    steps: int
    nfe: int
    levels: list[float] | None


class RealQuality(TypedDict):
    """What the judge says of real digits."""

    accuracy: float
    confidence: float
    frechet_floor: float
    nearest_train: float


class Spread(TypedDict):
    """Fréchet distances of several seeds, their mean and standard deviation."""

    frechet: list[float]
    mean: float
    std: float


class About(TypedDict):
    """Versions, and the sizes of data and network."""

    version: str
    torch: str
    shape: list[int]
    train: int
    held_out: int
    parameters: int


class Target(TypedDict):
    """One promise of the demo, and whether this run kept it."""

    what: str
    value: float
    relation: str
    bound: float
    kept: bool


class Measured(TypedDict):
    """Everything that was measured; keys of `seeds` are "method steps"."""

    about: About
    settings: dict[str, int]
    real: RealQuality
    levels: dict[str, list[list[float]]]
    samplers: list[SamplerRow]
    seeds: dict[str, Spread]
    heun: HeunErrors


class Results(Measured):
    """What metrics.json holds: all measurements, and the targets."""

    targets: list[Target]


def targets(results: Measured) -> list[Target]:
    """What the demo promises, and whether this run kept it."""
    one = {(row["method"], row["steps"]): row for row in results["samplers"]}
    spread = results["seeds"]
    heun, cd, ct, ect = one["heun", 18], one["cd", 1], one["ct", 1], one["ect", 1]
    shares = heun["class_shares"]
    fewer, more = spread["cd 1"], spread["cd 2"]
    slack = max(fewer["std"], more["std"])
    sure = "confidence relative to held-out"
    return [
        _at_least(f"Heun, 18 steps: {sure}", heun["confidence_relative"], 0.95),
        _at_least("Heun, 18 steps: smallest class share", min(shares), 0.04),
        _at_most("Heun, 18 steps: largest class share", max(shares), 0.20),
        _at_least(f"CD, 1 step: {sure}", cd["confidence_relative"], 0.93),
        _at_most("CD, 1 step: Frechet distance / Heun's", cd["frechet"] / heun["frechet"], 3.0),
        _at_least("CD, 1 step: classes present", sum(s > 0 for s in cd["class_shares"]), 10),
        _at_most(
            "CD, 2 steps: mean Frechet distance over seeds", more["mean"], fewer["mean"] + slack
        ),
        _at_least("CT, 1 step: classes present", sum(s > 0 for s in ct["class_shares"]), 10),
        _at_most("CT, 1 step: Frechet distance / Heun's", ct["frechet"] / heun["frechet"], 8.0),
        _at_most("CT, 2 steps: Frechet distance", one["ct", 2]["frechet"], ct["frechet"]),
        _at_most(
            "CT, 2 steps: mean Frechet distance over seeds",
            spread["ct 2"]["mean"],
            spread["ct 1"]["mean"],
        ),
        _at_least(f"ECT, 1 step: {sure}", ect["confidence_relative"], 0.90),
        _at_least("ECT, 1 step: classes present", sum(s > 0 for s in ect["class_shares"]), 10),
        _at_most("ECT, 1 step: Frechet distance / Heun's", ect["frechet"] / heun["frechet"], 4.0),
    ]


def _at_least(what: str, value: float, bound: float) -> Target:
    return Target(what=what, value=value, relation=">=", bound=bound, kept=value >= bound)


def _at_most(what: str, value: float, bound: float) -> Target:
    return Target(what=what, value=value, relation="<=", bound=bound, kept=value <= bound)
