"""What an adaptive run cost, and the error of one that could not go on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class AdaptiveInfo:
    """What a run cost, sample by sample.

    Attributes:
        nfe: int64 [B], evaluations of the model that the sample made use of.
        accepted: int64 [B], steps taken.
        rejected: int64 [B], steps tried and given up.
        finished: bool [B], whether the sample reached the end. Only False in a `SolverError`, or
            where nobody looked (masked mode while a graph is captured).
        calls: calls of the model for the whole batch.
        attempts: rounds of the loop: the largest accepted + rejected, or more in masked mode.
        trajectory: the states asked for, [K, B, ...]; None if none were.
        levels: where those states are: K levels, or times.
    """

    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    finished: Tensor
    calls: int
    attempts: int
    trajectory: Tensor | None = field(default=None, repr=False)
    levels: tuple[float, ...] | None = None


class SolverError(RuntimeError):
    """An adaptive run that could not go on; the text names a sample and where it stands.

    Attributes:
        x: [B, ...], the state that each sample reached, in the dtype and layout of the input.
        level, sigma, t: float64 [B], where: sigma of a sigma-space solver, t of a t-space one.
        info: the counts so far.
    """

    def __init__(self, message: str, x: Tensor, level: Tensor, info: AdaptiveInfo) -> None:
        super().__init__(message)
        self.x, self.info = x, info
        self.level = self.sigma = self.t = level
