"""Every published loss: a formula over a flow map's identities, with its citation and defaults."""

from cmsolvers.losses.recipes.align_your_flow import ayf_emd, ayf_lmd
from cmsolvers.losses.recipes.average_velocity import meanflow
from cmsolvers.losses.recipes.consistency import ict
from cmsolvers.losses.recipes.continuous_consistency import (
    continuous_cd,
    continuous_ct,
    rcm,
    scd,
    sct,
)
from cmsolvers.losses.recipes.diffusion import dsm, flow_matching

__all__ = [
    "ayf_emd",
    "ayf_lmd",
    "continuous_cd",
    "continuous_ct",
    "dsm",
    "flow_matching",
    "ict",
    "meanflow",
    "rcm",
    "scd",
    "sct",
]
