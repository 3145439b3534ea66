"""`cmsolvers sample`: samples of a checkpoint by any sampler."""

from cmsolvers.runs.sample.classes import ClassRule
from cmsolvers.runs.sample.plans import Plan, fitting, option_values, plan_of
from cmsolvers.runs.sample.sample_job import SampleSettings
from cmsolvers.runs.sample.sampling import Sampled, sample

__all__ = [
    "ClassRule",
    "Plan",
    "SampleSettings",
    "Sampled",
    "fitting",
    "option_values",
    "plan_of",
    "sample",
]
