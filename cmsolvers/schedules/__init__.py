"""Noise levels for samplers, float64 on the host: the largest first, 0 last if `append_zero`."""

from cmsolvers.schedules.levels import (
    exponential_sigmas,
    karras_sigmas,
    polyexponential_sigmas,
    vp_sigmas,
)
from cmsolvers.schedules.times import (
    beta_sigmas,
    cosine_sigmas,
    ddpm_sigmas,
    flow_sigmas,
    flow_times,
    shift_time,
)

__all__ = [
    "beta_sigmas",
    "cosine_sigmas",
    "ddpm_sigmas",
    "exponential_sigmas",
    "flow_sigmas",
    "flow_times",
    "karras_sigmas",
    "polyexponential_sigmas",
    "shift_time",
    "vp_sigmas",
]
