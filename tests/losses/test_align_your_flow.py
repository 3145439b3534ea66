"""Align Your Flow: values and gradients against the published formulas in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers.denoisers.flow_maps import AverageVelocity
from cmsolvers.losses.formulas.tangents import (
    unchanged,
)
from cmsolvers.losses.formulas.weights import square_sum
from cmsolvers.losses.recipes.align_your_flow import ayf_emd, ayf_lmd
from support.columns import column
from support.continuous_cases import (
    ENDS,
    KEY,
    RULES,
    STEP,
    TIMES,
    X0,
    along,
    compare,
    flow,
    net,
    of_sigma,
)


@pytest.mark.parametrize("warmup", [None, 20])
@pytest.mark.parametrize("rule", ["l2", "none"])
def test_eulerian_distillation(warmup: int | None, rule: str) -> None:
    raw = net(2)
    x, velocity = flow()
    v = velocity(x, TIMES)
    f = raw(x, TIMES, ENDS)
    rate = along(lambda x, t: raw(x, t, ENDS), x, TIMES, v)
    r = 0.99 if warmup is None else STEP / warmup
    g = RULES[rule][1]((f.detach() - v) + r * column(TIMES - ENDS) * rate)
    w = 1.0 / (TIMES - ENDS)
    value = w * (f - f.detach() + g).square().mean(1)
    options: dict[str, Any] = {"warmup": warmup, "tangent": RULES[rule][0]}
    options["weight"] = lambda t, s: 1.0 / (t - s)
    compare(ayf_emd, AverageVelocity(raw), value, (TIMES, ENDS), teacher=of_sigma, **options)


def test_eulerian_distillation_is_the_inner_product_of_the_paper() -> None:
    """With w |t - s| / 2 of |F - sg(F - g)|^2, that of sign(t - s) f^T sg(df/dt)."""
    raw = net(2)
    x, velocity = flow()
    v = velocity(x, TIMES)

    def whole(x: Tensor, t: Tensor) -> Tensor:
        return x + column(ENDS - t) * raw(x, t, ENDS)

    inner = (whole(x, TIMES) * along(whole, x, TIMES, v)).sum()
    found = ayf_emd(
        AverageVelocity(raw),
        X0,
        key=KEY,
        step=STEP,
        levels=(TIMES, ENDS),
        teacher=of_sigma,
        warmup=None,
        limit=1.0,
        tangent=unchanged,
        distance=square_sum,
        weight=lambda t, s: 0.5 * (t - s),
        reduction="sum",
    )
    parameters = list(raw.parameters())[:4]
    got = torch.autograd.grad(found.loss, parameters)
    for mine, theirs in zip(got, torch.autograd.grad(inner, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", ["l2", "none"])
def test_lagrangian_distillation(rule: str) -> None:
    raw = net(2)
    x, velocity = flow()
    f = raw(x, TIMES, ENDS)
    rate = along(lambda x, s: raw(x, TIMES, s), x, ENDS, torch.zeros_like(x))
    reached = (x + column(ENDS - TIMES) * f).detach()
    g = (f.detach() - velocity(reached, ENDS)) + column(ENDS - TIMES) * rate
    value = (f - f.detach() + RULES[rule][1](g)).square().mean(1)
    model = AverageVelocity(raw)
    compare(ayf_lmd, model, value, (TIMES, ENDS), teacher=of_sigma, tangent=RULES[rule][0])
