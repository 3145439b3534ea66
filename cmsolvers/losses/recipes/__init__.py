"""Every published loss: a formula over a flow map's identities, with its citation and defaults."""

from cmsolvers.losses.recipes.align_your_flow import ayf_emd, ayf_lmd
from cmsolvers.losses.recipes.average_velocity import imf, meanflow
from cmsolvers.losses.recipes.consistency import cd, ct, ict
from cmsolvers.losses.recipes.continuous_consistency import (
    continuous_cd,
    continuous_ct,
    rcm,
    scd,
    sct,
)
from cmsolvers.losses.recipes.diffusion import dsm, flow_matching
from cmsolvers.losses.recipes.discrete_velocity import alpha_flow, soflow
from cmsolvers.losses.recipes.latent_consistency import lcm
from cmsolvers.losses.recipes.multistep import mcd
from cmsolvers.losses.recipes.progressive import progressive_distillation
from cmsolvers.losses.recipes.reflow import reflow
from cmsolvers.losses.recipes.self_distillation import lsd, psd
from cmsolvers.losses.recipes.shortcut import shortcut
from cmsolvers.losses.recipes.terminal_velocity import tvm
from cmsolvers.losses.recipes.trajectory import ctm
from cmsolvers.losses.recipes.tuning import ect, tcm

__all__ = [
    "alpha_flow",
    "ayf_emd",
    "ayf_lmd",
    "cd",
    "continuous_cd",
    "continuous_ct",
    "ct",
    "ctm",
    "dsm",
    "ect",
    "flow_matching",
    "ict",
    "imf",
    "lcm",
    "lsd",
    "mcd",
    "meanflow",
    "progressive_distillation",
    "psd",
    "rcm",
    "reflow",
    "scd",
    "sct",
    "shortcut",
    "soflow",
    "tcm",
    "tvm",
]
