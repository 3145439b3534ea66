"""Continuous-time consistency: values and gradients against the formulas of the papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction
from cmsolvers.denoisers import EDM, from_flow
from cmsolvers.denoisers.flow_maps import TrigFlowMap
from cmsolvers.losses.recipes.continuous_consistency import continuous_cd, continuous_ct
from support.columns import column
from support.continuous_cases import (
    ANGLES,
    KEY,
    SD,
    STEP,
    X0,
    along,
    compare,
    net,
    of_sigma,
    z,
)


def boundary_map(raw: nn.Module, x: Tensor, sigma: Tensor, least: float = 0.002) -> Tensor:
    """The consistency model's f, as in its paper."""
    s = column(sigma)
    f = raw(x / (s**2 + SD**2).sqrt(), 0.25 * sigma.log())
    return SD**2 / ((s - least) ** 2 + SD**2) * x + (s - least) * SD / (s**2 + SD**2).sqrt() * f


SIGMAS = torch.tensor([0.002, 0.05, 0.3, 1.0, 6.0, 60.0], dtype=torch.float64)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_continuous_consistency(distilled: bool, weighted: bool) -> None:
    raw = net(1)
    x = X0 + column(SIGMAS) * z()
    v = (x - of_sigma(x, SIGMAS)) / column(SIGMAS) if distilled else z()
    rate = along(lambda x, s: boundary_map(raw, x, s), x, SIGMAS, v)
    w = 1.0 / (1.0 + SIGMAS)
    if not weighted:  # dsigma/du of the power law
        high, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
        w = 7.0 * (high - low) * SIGMAS ** (6.0 / 7.0)
    value = w * (boundary_map(raw, x, SIGMAS) * rate).sum(1)
    options: dict[str, Any] = {"weight": lambda s: 1.0 / (1.0 + s)} if weighted else {}
    if distilled:
        options["teacher"] = of_sigma
    compare(
        continuous_cd if distilled else continuous_ct,
        ConsistencyFunction(raw),
        value,
        SIGMAS,
        **options,
    )


def test_any_callable_and_any_wrapper_will_do() -> None:
    raw = net(1)
    model = ConsistencyFunction(raw)
    options: dict[str, Any] = {"key": KEY, "step": STEP, "levels": SIGMAS}
    whole = continuous_ct(model, X0, **options)
    wanted = torch.autograd.grad(whole.loss, list(raw.parameters())[:4])

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    plain = lambda x, sigma: boundary_map(raw, x, sigma)  # noqa: E731
    for other in (Wrapper(model), plain):
        found = continuous_ct(other, X0, **options)
        torch.testing.assert_close(found.per_sample[1:], whole.per_sample[1:], rtol=1e-11, atol=0)
        got = torch.autograd.grad(found.loss, list(raw.parameters())[:4])
        for mine, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_coordinates_do_not_matter() -> None:
    """EDM's scalings without a boundary are TrigFlow's f with F of the other sign."""
    raw = net(1)

    def turned(x: Tensor, t: Tensor) -> Tensor:
        return -raw(x, t)

    karras = EDM(raw, SD, c_noise=lambda s: torch.as_tensor(s / SD).atan())
    circle = TrigFlowMap(turned, SD)
    options: dict[str, Any] = {"key": KEY, "step": STEP, "reduction": "none"}
    one = continuous_ct(karras, X0, levels=SD * ANGLES.tan(), **options)
    two = continuous_ct(circle, X0, levels=ANGLES, **options)
    torch.testing.assert_close(one.per_sample, two.per_sample, rtol=1e-12, atol=0)
    teachers: dict[str, Any] = {}
    for name, teacher in {
        "karras": of_sigma,
        "flow": from_flow(lambda x, t: (x - of_sigma(x / column(1 - t), t / (1 - t))) / column(t)),
    }.items():
        teachers[name] = continuous_cd(circle, X0, levels=ANGLES, teacher=teacher, **options)
    torch.testing.assert_close(
        teachers["karras"].per_sample, teachers["flow"].per_sample, rtol=1e-11, atol=0
    )


def test_a_teacher_has_its_own_scalings() -> None:
    """Not those of the student, whose scaled input is made together with the state."""
    teacher = EDM(net(1, seed=2).eval(), 1.3, c_noise="sigma")
    options: dict[str, Any] = {"key": KEY, "step": STEP, "levels": SIGMAS[1:3]}
    model, x0 = ConsistencyFunction(net(1)), X0[:2]
    one = continuous_cd(model, x0, teacher=teacher, **options)
    two = continuous_cd(model, x0, teacher=lambda x, s: teacher(x, s), **options)
    torch.testing.assert_close(one.per_sample, two.per_sample, rtol=1e-11, atol=0)
