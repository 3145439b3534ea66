"""`cmsolvers evaluate`: samples measured against data."""

from cmsolvers.runs.evaluate.sample_evaluation import EvaluationSettings, evaluate, table

__all__ = ["EvaluationSettings", "evaluate", "table"]
