"""The sections of a configuration, in the order of the template.

Each key stands once, with its type, default, range and words: the template, the checks of a file
and what a run may go on with are made from that.
"""

from __future__ import annotations

from cmsolvers.runs.config.config_keys import Section
from cmsolvers.runs.config.data_keys import Data
from cmsolvers.runs.config.loss_keys import LossKeys, OptimizerKeys, ScheduleKeys
from cmsolvers.runs.config.model_keys import Init, ModelKeys, Network, Teacher
from cmsolvers.runs.config.run_keys import Checkpoints, Logging, Run, Sampling, Train

SECTIONS: dict[str, type[Section]] = {
    one.section: one
    for one in (
        Run,
        Data,
        ModelKeys,
        Network,
        Init,
        Teacher,
        LossKeys,
        OptimizerKeys,
        ScheduleKeys,
        Train,
        Checkpoints,
        Logging,
        Sampling,
    )
}
"""By name, in the order of the template."""
