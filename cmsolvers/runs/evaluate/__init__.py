"""`cmsolvers evaluate`: samples measured against data."""

from cmsolvers.runs.evaluate.evaluation import EvaluationSettings, evaluate, table

__all__ = ["EvaluationSettings", "evaluate", "table"]
