"""Preconditioned networks as f = a x + b F, and how a and b change with the level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers import ConsistencyFunction
from cmsolvers.denoisers import EDM, from_eps, from_flow, from_v
from cmsolvers.processes import VP

LEVELS = torch.tensor([0.002, 0.05, 0.4, 0.9], dtype=torch.float64)


def net(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x + t[:, None])


@pytest.mark.parametrize(
    "model",
    [
        ConsistencyFunction(net),
        EDM(net),
        from_flow(net),
        from_v(net, process=VP()),
        from_eps(net, process=VP()),
    ],
    ids=lambda m: type(m).__name__,
)
def test_skip_out_and_their_rates(model: Any) -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    a, b = (torch.as_tensor(w, dtype=torch.float64).reshape(-1, 1) for w in model.skip_out(LEVELS))
    f = model.raw(x, LEVELS)
    torch.testing.assert_close(a * x + b * f, model(x, LEVELS), rtol=1e-13, atol=1e-14)
    rates, h = model.start_rates(LEVELS), 1e-4 * LEVELS
    assert all(rate.shape == LEVELS.shape and not rate.requires_grad for rate in rates)
    for k, rate in enumerate(rates):
        high, low = model.skip_out(LEVELS + h)[k], model.skip_out(LEVELS - h)[k]
        slope = torch.as_tensor((high - low) / (2 * h), dtype=torch.float64)
        torch.testing.assert_close(rate[1:], slope.expand(4)[1:], rtol=1e-6, atol=1e-9)
