"""sCM and rCM: values and gradients against the published formulas, and their options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction
from cmsolvers.denoisers.flow_maps import TrigFlowMap
from cmsolvers.losses.formulas.tangents import (
    Clamped,
    Normalised,
    inverse_tangent,
    power_law_rate,
    unchanged,
)
from cmsolvers.losses.formulas.weights import square_sum
from cmsolvers.losses.recipes.continuous_consistency import rcm, scd, sct
from support.columns import column
from support.continuous_cases import (
    ANGLES,
    KEY,
    RULES,
    SD,
    STEP,
    X0,
    D,
    along,
    compare,
    net,
    normalised,
    of_sigma,
    trig,
)
from support.loss_cases import SmallNet


def circle_tangent(raw: nn.Module, x: Tensor, v: Tensor, r: float, kind: str = "scm") -> Tensor:
    """g, as the papers print it."""
    cos, sin = column(ANGLES.cos()), column(ANGLES.sin())
    f = raw(x / SD, ANGLES).detach()
    rate = along(lambda x, t: raw(x / SD, t), x, ANGLES, v)
    first = cos**2 if kind == "scm" else cos * (1.0 - r**2 * sin**2).sqrt()
    return -first * (SD * f - v) - r * cos * sin * (x + SD * rate)


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, t: Tensor) -> Tensor:
        return self.scale[0] + self.scale[1] * t[:, None]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("warmup", [None, 20])
def test_scm(rule: str, distilled: bool, warmup: int | None) -> None:
    raw, weight = net(1), Weight()
    x, pair, teacher = trig()
    r = 1.0 if warmup is None else STEP / warmup
    g = RULES[rule][1](circle_tangent(raw, x, teacher if distilled else pair, r))
    f = raw(x / SD, ANGLES)
    square = (f - f.detach() - g).square().sum(1) / D / (SD * ANGLES.tan())
    w = weight(ANGLES)[:, 0]
    value = (-w).exp() * square + w
    options: dict[str, Any] = {"teacher": of_sigma} if distilled else {}
    options |= {"weight": weight, "prior": inverse_tangent(SD), "tangent": RULES[rule][0]}
    model = TrigFlowMap(raw, SD)
    compare(scd if distilled else sct, model, value, ANGLES, warmup=warmup, **options)
    found = sct(model, X0, key=KEY, step=STEP, levels=ANGLES, weight=weight).loss
    assert torch.autograd.grad(found, weight.scale)[0].abs().min() > 0


@pytest.mark.parametrize("warmup", [None, 20, 5])
def test_rcm(warmup: int | None) -> None:
    raw = net(1)
    x, _, teacher = trig()
    r = 1.0 if warmup is None else STEP / warmup
    g = normalised(circle_tangent(raw, x, teacher, r, "rcm"))
    f = raw(x / SD, ANGLES)
    value = (f - f.detach() - g).square().sum(1)
    compare(rcm, TrigFlowMap(raw, SD), value, ANGLES, warmup=warmup, teacher=of_sigma)


def test_warm_ups_differ_on_the_way_alone() -> None:
    model = TrigFlowMap(net(1), SD)
    options: dict[str, Any] = {"key": KEY, "step": STEP, "levels": ANGLES, "teacher": of_sigma}
    for warmup, same in ((5, True), (10, False)):
        one = rcm(model, X0, warmup=warmup, **options)
        two = scd(model, X0, warmup=warmup, distance=square_sum, **options)
        parameters = list(model.parameters())[:2]
        a = torch.autograd.grad(one.loss, parameters)
        b = torch.autograd.grad(two.loss, parameters)
        near = all(torch.allclose(p, q, rtol=1e-11) for p, q in zip(a, b, strict=True))
        assert near == same


def test_the_gradient_is_that_of_the_inner_product() -> None:
    """|F - sg(F) - g|^2 has the gradient of -2 F^T g, whatever g is."""
    raw = net(1)
    x, pair, _ = trig()
    g = circle_tangent(raw, x, pair, 1.0)
    model = TrigFlowMap(raw, SD)
    options: dict[str, Any] = {"warmup": None, "tangent": unchanged, "distance": square_sum}
    found = sct(model, X0, key=KEY, step=STEP, levels=ANGLES, reduction="sum", **options)
    inner = -2.0 * (raw(x / SD, ANGLES) * g).sum()
    parameters = list(raw.parameters())[:4]
    got = torch.autograd.grad(found.loss, parameters)
    for mine, theirs in zip(got, torch.autograd.grad(inner, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def test_the_loss_is_the_square_of_the_tangent() -> None:
    """So that a loss of "l2" is nearly 1 / D and one of "rms" nearly 1, in any dimension."""
    x0 = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = TrigFlowMap(SmallNet(1, size=64).double(), SD)
    options: dict[str, Any] = {"key": 0, "step": 0, "levels": 0.8, "warmup": None}
    short = sct(model, x0, tangent=Normalised(c=1e-9), **options)
    long = sct(model, x0, tangent=Normalised("rms", c=1e-9), **options)
    torch.testing.assert_close(short.loss, torch.tensor(1.0 / 64, dtype=torch.float64))
    torch.testing.assert_close(long.loss, torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(
        short.diagnostics["tangent_norm"], 8.0 * long.diagnostics["tangent_norm"]
    )


@pytest.mark.parametrize("loss", [sct, scd, rcm])
def test_other_coordinates_are_refused(loss: Any) -> None:
    teacher = {} if loss is sct else {"teacher": of_sigma}
    with pytest.raises(ValueError, match="model must be in TrigFlow coordinates"):
        loss(ConsistencyFunction(net(1)), X0, key=0, step=0, **teacher)


def test_bad_options() -> None:
    for bad in (
        lambda: Normalised("max"),  # type: ignore[arg-type]
        lambda: Normalised(c=-1.0),
        lambda: Normalised(nan_rows="drop"),  # type: ignore[arg-type]
        lambda: Clamped(0.0),
        lambda: inverse_tangent(0.0),
        lambda: power_law_rate(2.0, 1.0),
    ):
        with pytest.raises(ValueError, match="must"):
            bad()
    model = TrigFlowMap(net(1), SD)
    with pytest.raises(ValueError, match="weight must return one number per sample"):
        sct(model, X0, key=0, step=0, weight=lambda t: t.sum())
    with pytest.raises(ValueError, match="derivative must be"):
        sct(model, X0, key=0, step=0, derivative="exact")
    with pytest.raises(ValueError, match="warmup must"):
        sct(model, X0, key=0, step=0, warmup=0)


def spoilt(x: Tensor, sigma: Tensor) -> Tensor:
    """A teacher whose sample 2 is NaN."""
    clean = of_sigma(x, sigma)
    return torch.where((torch.arange(len(x)) == 2)[:, None], math.nan, clean)


@pytest.mark.parametrize("loss", [scd, rcm])
def test_a_teacher_that_is_not_finite_in_one_sample(loss: Any) -> None:
    model = TrigFlowMap(net(1), SD)
    options: dict[str, Any] = {"key": KEY, "step": STEP, "levels": ANGLES, "reduction": "none"}
    with pytest.raises(FloatingPointError, match="sample 2"):
        loss(model, X0, teacher=spoilt, **options)
    whole = loss(model, X0, teacher=of_sigma, **options)
    rule = Normalised(nan_rows="zero")
    found = loss(model, X0, teacher=spoilt, tangent=rule, **options)
    others = [0, 1, 3, 4, 5]
    assert int(found.diagnostics["tangents_zeroed"]) == 1
    torch.testing.assert_close(found.per_sample[others], whole.per_sample[others])
    assert float(found.per_sample[2]) == 0.0
    parameters = list(model.parameters())[:4]
    got = torch.autograd.grad(found.loss.sum(), parameters)
    wanted = torch.autograd.grad(whole.loss[others].sum(), parameters)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_derivative_has_the_masks_of_the_student() -> None:
    """With other masks in one of the five passes the difference would be as large as the masks'."""
    model = TrigFlowMap(SmallNet(1, dropout=0.5).double().train(), SD)
    found = {}
    for derivative in ("jvp", "finite_difference", "discrete"):
        torch.manual_seed(1)
        options: dict[str, Any] = {"derivative": derivative, "gap": 1e-6, "warmup": None}
        loss = sct(model, X0, key=KEY, step=STEP, levels=ANGLES, tangent=unchanged, **options)
        found[derivative] = loss.per_sample
    torch.manual_seed(2)
    other = sct(model, X0, key=KEY, step=STEP, levels=ANGLES, tangent=unchanged, warmup=None)
    assert not torch.allclose(other.per_sample, found["jvp"], rtol=1e-2)
    torch.testing.assert_close(found["finite_difference"], found["jvp"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found["discrete"], found["jvp"], rtol=1e-4, atol=1e-6)


def test_an_average_as_what_moves() -> None:
    """`target` gives f^- of the tangent, the student's own F is what stands still beside it."""
    raw, average = net(1), net(1, seed=4)
    x, pair, _ = trig()
    g = normalised(circle_tangent(average, x, pair, 1.0))
    f = raw(x / SD, ANGLES)
    value = (f - f.detach() - g).square().mean(1)
    compare(sct, TrigFlowMap(raw, SD), value, ANGLES, target=TrigFlowMap(average, SD), warmup=None)
