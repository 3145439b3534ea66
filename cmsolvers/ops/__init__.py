"""Fused steps: each function is one kernel over the state, and none reads its output back.

Weights and levels are numbers or tensors on the state's device, which the kernel reads itself:
there is nothing but the kernel either way. Only this package touches the extension.
"""

from cmsolvers.ops import vmap_rules as _vmap_rules  # noqa: F401 - rules are registered there
from cmsolvers.ops.binary import build_info
from cmsolvers.ops.distance import form_distance
from cmsolvers.ops.ema_update import ema_update
from cmsolvers.ops.keys import Key
from cmsolvers.ops.named import (
    add_noise,
    consistency_output,
    edm_input,
    edm_output,
    euler_maruyama_step,
    heun_step,
    pf_ode_step,
    scale_input,
)
from cmsolvers.ops.noising import noise_forms
from cmsolvers.ops.pair_rows import consistency_inputs, consistency_rows
from cmsolvers.ops.step import weighted_step

__all__ = [
    "Key",
    "add_noise",
    "build_info",
    "consistency_inputs",
    "consistency_output",
    "consistency_rows",
    "edm_input",
    "edm_output",
    "ema_update",
    "euler_maruyama_step",
    "form_distance",
    "heun_step",
    "noise_forms",
    "pf_ode_step",
    "scale_input",
    "weighted_step",
]
