"""The state of torch's CPU generator, taken and put back in a fraction of a microsecond.

`torch.default_generator.get_state` makes a tensor of 5,000 bytes and `set_state` parses it, which
takes longer than the noise of a small step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cmsolvers.ops.binary import C

STATE: Callable[[], object] = (
    torch.default_generator.get_state if C is None else C.cpu_generator_state
)
"""The state now: to be handed to `PUT_STATE` in the same process, and nothing else."""

PUT_STATE: Callable[[object], object] = (
    torch.default_generator.set_state if C is None else C.put_cpu_generator_state  # type: ignore[assignment]
)
"""Let torch's CPU generator go on from a state."""
