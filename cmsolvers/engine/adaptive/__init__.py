"""Error-controlled runs: every sample has its own steps, and its result is its own."""

from cmsolvers.engine.observers import AdaptiveInfo, SolverError

__all__ = ["AdaptiveInfo", "SolverError"]
