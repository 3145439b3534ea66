"""Steps compiled whole with levels that change from call to call."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

from cmsolvers import ops

STEPS = {
    "pf_ode_step": lambda x, d, s: ops.pf_ode_step(x, d, s, 0.5 * s),
    "heun_step": lambda x, d, s: ops.heun_step(x, d, s, 0.5 * s, d),
    "euler_maruyama_step": lambda x, d, s: ops.euler_maruyama_step(x, d, s, 0.1, seed=1),
    "add_noise": lambda x, d, s: ops.add_noise(x, s, seed=1),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_levels_may_change(name: str, kind: str):
    torch._dynamo.reset()
    step, counter = STEPS[name], torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    x, d = torch.randn(4, 3), torch.randn(4, 3)
    for value in (9.0, 7.0, 5.0, 3.0):
        level = value if kind == "number" else torch.tensor(value, dtype=torch.float64)
        assert torch.equal(compiled(x, d, level), step(x, d, level))
    if kind == "tensor":
        assert counter.frame_count == 1
