"""alpha-Flow and SoFlow against plain torch in float64, and their limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers.denoisers.flow_maps import AverageVelocity, TrigFlowMap
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.formulas.velocity_guidance import MixedGuidance
from cmsolvers.losses.formulas.weights import mean_square, square_sum
from cmsolvers.losses.recipes.average_velocity import meanflow
from cmsolvers.losses.recipes.diffusion import flow_matching
from cmsolvers.losses.recipes.discrete_velocity import (
    ALPHA_FLOW,
    SOFLOW,
    ExponentialSchedule,
    SigmoidSchedule,
    alpha_flow,
    soflow,
)
from cmsolvers.losses.times.basic_times import LogitNormalPairs
from support.columns import column
from support.orders import slope
from support.velocities import (
    KEY,
    NULL,
    VelocityNet,
    adaptive,
    batch,
    noised,
    pairs,
    same_gradient,
    z_of,
)

EXACT = 1e-12


def gradient(value: Tensor, net: torch.nn.Module) -> Tensor:
    found = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    return torch.cat([g.reshape(-1) for g in found if g is not None])


# --- alpha-Flow ----------------------------------------------------------------------------------


def alpha_reference(
    net: Any,
    x0: Tensor,
    t: Tensor,
    s: Tensor,
    alpha: float,
    p: float,
    eps: float,
    clip: float = math.inf,
) -> Tensor:
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    h = column(alpha * (t - s))
    with torch.no_grad():
        rest = net(x - h * v, t - h[:, 0], s)
    # Where s = t the published quotient is 0 / 0 and the target is v.
    span = column(torch.where(t > s, t - s, 1.0))
    aim = ((h * v + (column(t - s) - h) * rest) / span).clamp(-clip, clip)
    aim = torch.where(column(t > s), aim, v)
    square = ((net(x, t, s) - aim) ** 2).mean(1)
    weight = torch.where(t > s, alpha ** (2 * p - 1), torch.ones_like(t))
    return weight * adaptive(square, p, eps)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.01])
def test_alpha_flow_is_the_published_formula(alpha: float, p: float, clip: float | None) -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model = AverageVelocity(net)
    found = alpha_flow(model, x0, key=KEY, step=0, levels=(t, s), alpha=alpha, p=p, clip=clip)
    wanted = alpha_reference(net, x0, t, s, alpha, p, 1e-3, math.inf if clip is None else clip)
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=EXACT, atol=EXACT)
    same_gradient(found.loss, wanted.mean(), net, EXACT)


def test_alpha_one_is_flow_matching_over_the_interval() -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model = AverageVelocity(net)
    found = alpha_flow(model, x0, key=KEY, step=0, levels=(t, s), alpha=1.0, p=0.0)
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    same_gradient(found.loss, ((net(x, t, s) - v) ** 2).mean(), net, EXACT)
    diagonal = alpha_flow(model, x0, key=KEY, step=0, levels=t, alpha=0.3, p=0.0)
    wanted = flow_matching(model, x0, key=KEY, step=0, levels=t)
    same_gradient(diagonal.loss, wanted.loss.double(), net, EXACT)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_small_alpha_is_meanflow_at_rate_one(p: float) -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model = AverageVelocity(net)
    # Without eps, which does not scale with alpha.
    options = {"key": KEY, "step": 0, "levels": (t, s), "p": p, "square": mean_square}
    wanted = gradient(meanflow(model, x0, eps=1e-300, **options).loss, net)
    alphas = [0.1 / 2**k for k in range(6)]
    errors = []
    for alpha in alphas:
        found = alpha_flow(model, x0, alpha=alpha, eps=1e-300, smallest=0.0, **options)
        errors.append(float((gradient(found.loss, net) - wanted).norm() / wanted.norm()))
    assert -slope(errors, alphas) == pytest.approx(1.0, abs=0.1)
    exact = alpha_flow(model, x0, alpha=0.004, eps=1e-300, **options)
    torch.testing.assert_close(gradient(exact.loss, net), wanted, rtol=EXACT, atol=EXACT)


def test_alpha_falls_on_schedule() -> None:
    schedule = SigmoidSchedule()
    assert schedule(0.0) == schedule(0.1) == 1.0
    assert schedule(1.0) == schedule(0.9) == 0.0
    assert schedule(0.5) == 0.5
    assert schedule(0.4) == pytest.approx(1 - 1 / (1 + math.exp(25 * 0.1)), rel=1e-12)
    late = SigmoidSchedule(0.5, 1.0)
    assert late(0.5) == 1.0 and late(0.75) == 0.5
    for progress in (0.0, 0.33, 0.47, 0.6, 1.0):
        tensor = schedule(torch.tensor(progress, dtype=torch.float64))
        assert float(tensor) == pytest.approx(schedule(progress), rel=1e-12, abs=1e-15)
    for setting in ALPHA_FLOW.values():
        found = alpha_flow(AverageVelocity(VelocityNet()), batch(), key=KEY, step=0, **setting)
        assert found.diagnostics["alpha"] == 0.0
    with pytest.raises(ValueError, match="start must be below end"):
        SigmoidSchedule(1.0, 0.5)
    model, x0 = AverageVelocity(VelocityNet()), batch()
    seen = [
        alpha_flow(model, x0, key=KEY, step=step, total=100).diagnostics["alpha"]
        for step in (0, 50, 100, 1000)
    ]
    assert seen == [1.0, 0.5, 0.0, 0.0]
    assert alpha_flow(model, x0, key=KEY, step=0).diagnostics["alpha"] == 0.0


@pytest.mark.parametrize("step", [0, 40, 50, 62, 100])
def test_a_step_on_the_device_is_the_same_schedule(step: int) -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model = AverageVelocity(net)
    options: dict[str, Any] = {"key": KEY, "levels": (t, s), "total": 100}
    plain = alpha_flow(model, x0, step=step, **options)
    device = alpha_flow(model, x0, step=torch.tensor([step]), **options)
    torch.testing.assert_close(device.per_sample, plain.per_sample, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        gradient(device.loss, net), gradient(plain.loss, net), rtol=1e-10, atol=1e-12
    )


def test_alpha_flow_wants_an_average_velocity() -> None:
    model = TrigFlowMap(VelocityNet(), second="end")
    with pytest.raises(ValueError, match="must be an average velocity"):
        alpha_flow(model, batch(), key=KEY, step=0)
    with pytest.raises(ValueError, match="alpha"):
        alpha_flow(AverageVelocity(VelocityNet()), batch(), key=KEY, step=0, alpha=1.5)


# --- SoFlow --------------------------------------------------------------------------------------


def soflow_reference(
    net: Any, x0: Tensor, t: Tensor, s: Tensor, rho: float, p: float, eps: float, v: Tensor
) -> Tensor:
    """The loss in its printed form, |f - f_l|^2 with 1 / ((t - l) |b|), sample by sample."""
    rows = []
    for i in range(len(x0)):
        here, one, t_i, s_i = x0[i : i + 1], v[i : i + 1], t[i : i + 1], s[i : i + 1]
        x = noised(here, z_of(x0)[i : i + 1], t_i)
        if float(t_i) == float(s_i):
            square = ((net(x, t_i, t_i, i) - one) ** 2).mean()
            rows.append(adaptive(square, p, eps))
            continue
        l_i = torch.minimum(t_i + (s_i - t_i) * rho, t_i - 1e-4)
        with torch.no_grad():
            y = x + one * column(l_i - t_i)
            aim = y + column(s_i - l_i) * net(y, l_i, s_i, i)
        f = x + column(s_i - t_i) * net(x, t_i, s_i, i)
        square = ((f - aim) ** 2).mean()
        quotient = square.detach() / (t_i - l_i) ** 2
        rows.append(square / ((t_i - l_i) * (t_i - s_i) * (quotient + eps) ** p))
    return torch.stack([row.reshape(()) for row in rows])


@pytest.mark.parametrize("p", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("rho", [1.0, 0.1, 1e-5])
def test_soflow_is_the_published_formula(rho: float, p: float) -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model = AverageVelocity(net)
    found = soflow(model, x0, key=KEY, step=0, levels=(t, s), ratio=rho, p=p, eps=0.01)
    v = z_of(x0) - x0
    wanted = soflow_reference(lambda x, t, s, i: net(x, t, s), x0, t, s, rho, p, 0.01, v)
    # Quotients of differences over 1e-4 lose four digits.
    tolerance = 1e-9 if rho == 1e-5 else 1e-11
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=tolerance, atol=tolerance)
    same_gradient(found.loss, wanted.mean(), net, tolerance)


def test_half_the_consistency_gradient_as_in_the_published_code() -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model = AverageVelocity(net)
    options: dict[str, Any] = {"key": KEY, "step": 0, "levels": (t, s), "ratio": 0.2}
    whole = soflow(model, x0, **options).per_sample
    half = soflow(model, x0, consistency=0.5, **options).per_sample
    share = torch.where(t > s, 0.5, 1.0).double()
    torch.testing.assert_close(half, whole * share, rtol=1e-14, atol=0.0)


def test_soflow_guidance() -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model, label = AverageVelocity(net), torch.arange(32) % NULL
    found = soflow(
        model,
        x0,
        key=KEY,
        step=0,
        levels=(t, s),
        ratio=0.2,
        p=1.0,
        extra_args={"label": label},
        label_dropout=LabelDropout("label", 0.0, NULL),
        guidance=MixedGuidance("label", NULL, scale=2.5, mix=0.25),
    )
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    with torch.no_grad():
        alone = net(x, t, t, torch.full_like(label, NULL))
        guided = 0.25 * (v + 1.5 * (v - alone)) + 0.75 * net(x, t, t, label)
    wanted = soflow_reference(
        lambda x, t, s, i: net(x, t, s, label[i : i + 1]), x0, t, s, 0.2, 1.0, 0.01, guided
    )
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["average velocity", "trigflow"])
def test_short_steps_are_the_derivative_at_rate_one(kind: str) -> None:
    """q -> d/dt f, whose loss with p = 0 is MeanFlow's up to the weight rho of a sample."""
    net, x0, (t, s) = VelocityNet(), batch(), pairs(equal=0)
    model: Any = (
        AverageVelocity(net) if kind == "average velocity" else TrigFlowMap(net, second="end")
    )
    if kind == "trigflow":
        t, s = t * 1.5, s * 1.5
    options: dict[str, Any] = {"key": KEY, "step": 0, "p": 0.0, "square": square_sum}
    ratios = [0.05 / 2**k for k in range(6)]
    errors = []
    for rho in ratios:
        found = soflow(model, x0, levels=(t, s), ratio=rho, least=1e-9, **options)
        _, b = model.skip_out(t, s)
        wanted = meanflow(model, x0, levels=(t, s), **options).per_sample * (t - s) / b.abs()
        errors.append(float((found.per_sample / rho - wanted).norm() / wanted.norm()))
    assert -slope(errors, ratios) == pytest.approx(1.0, abs=0.1)


def test_soflow_settings_and_schedule() -> None:
    schedule = ExponentialSchedule(0.1, 0.002)
    assert schedule(0.0) == pytest.approx(0.1) and schedule(1.0) == pytest.approx(0.002)
    assert schedule(0.5) == pytest.approx(math.sqrt(0.1 * 0.002))
    model, x0 = AverageVelocity(VelocityNet()), batch(2048)
    found = soflow(model, x0, key=KEY, step=500, total=1000, **SOFLOW["cifar"])
    assert found.diagnostics["ratio"] == pytest.approx(math.sqrt(3e-4))
    assert not bool((found.levels[0] == found.levels[1]).any())
    images = soflow(model, x0, key=KEY, step=0, total=1000, **SOFLOW["imagenet"])
    share = float((images.levels[0] == images.levels[1]).double().mean())
    assert share == pytest.approx(0.75, abs=0.04)


class Masked(torch.nn.Module):
    """A network of dropout alone: u = w at kept elements, over the share that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.full((3,), 0.3, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.nn.functional.dropout(self.w + 0.0 * x, 0.5, self.training)


@pytest.mark.parametrize("recipe", [alpha_flow, soflow])
def test_both_passes_have_the_same_dropout_mask(recipe: Any) -> None:
    """Then the residual is u - v times a number; with another mask other values come up."""
    model, x0, (t, s) = AverageVelocity(Masked()), batch(), pairs(equal=0)
    options: dict[str, Any] = {"alpha": 0.5} if recipe is alpha_flow else {"ratio": 0.5}
    found = recipe(model, x0, key=KEY, step=0, levels=(t, s), p=0.0, square=square_sum, **options)
    v = z_of(x0) - x0
    scaled = found.per_sample * 2  # alpha^(-1) alpha^2, and rho: 1/2
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 2.0]).double()] * 3)
    possible = ((masks[None] * 0.3 - v[:, None]) ** 2).sum(2)
    assert float((possible - scaled[:, None]).abs().amin(1).max()) < 1e-10


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_small_batches_and_other_dtypes(size: int, dtype: torch.dtype) -> None:
    model = AverageVelocity(VelocityNet().to(dtype))
    x0 = batch(4)[:size].to(dtype)
    for loss, options in ((alpha_flow, {"alpha": 0.3}), (soflow, {"ratio": 0.1})):
        for times in (LogitNormalPairs(equal=0.0), LogitNormalPairs(equal=1.0)):
            found = loss(model, x0, key=KEY, step=0, reduction="sum", times=times, **options)
            found.loss.backward()
            assert found.per_sample.shape == (size,)
            assert bool(found.loss.isfinite())
