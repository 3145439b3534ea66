"""Every published loss: a formula over a flow map's identities, with its citation and defaults."""

from cmsolvers.losses.recipes.average_velocity import meanflow
from cmsolvers.losses.recipes.consistency import ict
from cmsolvers.losses.recipes.diffusion import dsm, flow_matching

__all__ = ["dsm", "flow_matching", "ict", "meanflow"]
