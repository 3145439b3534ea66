"""What all recipes of the benchmark have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmsolvers import checks as check

STEPS = (1, 2, 4)
"""How many steps are sampled in."""


@dataclass(frozen=True)
class Setting:
    """The course of every training, and how many samples are measured.

    Attributes:
        calls: budget of a training, in calls of a network on one batch. A forward pass is 1, one
            with a tangent beside it (JVP) 2; passes of targets and teachers count as those of the
            network do, on part of a batch in proportion. Backward passes are not counted.
        batch_size: samples per step.
        width: of the network.
        blocks: of the network.
        samples: that are compared with exact ones.
        latents: that are compared with the exact map.

    Raises:
        TypeError, ValueError: a value that is no int, or below 1 (samples: 2).
    """

    calls: int = 1000
    batch_size: int = 256
    width: int = 128
    blocks: int = 3
    samples: int = 8192
    latents: int = 1024

    def __post_init__(self) -> None:
        for name in ("calls", "batch_size", "width", "blocks", "latents"):
            check.count(name, getattr(self, name))
        check.count("samples", self.samples, least=2)

    @staticmethod
    def tiny() -> Setting:
        """Seconds instead of minutes: for a test of the way, not of the losses."""
        return Setting(calls=60, batch_size=64, width=32, blocks=1, samples=256, latents=32)


def learning_rate(peak: float, share: float) -> float:
    """At a share of the budget in [0, 1]: a linear rise over 5 %, then half a cosine down to 0."""
    if share < 0.05:
        return peak * max(share, 1e-3) / 0.05
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (share - 0.05) / 0.95)))
