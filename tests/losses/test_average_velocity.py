"""MeanFlow and improved MeanFlow against plain torch in float64."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers import noise
from cmsolvers.denoisers.flow_maps import AverageVelocity
from cmsolvers.denoisers.velocity_heads import VelocityHeads
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.formulas.velocity_guidance import (
    ONCE,
    Guidance,
    GuidanceInputs,
    MixedGuidance,
)
from cmsolvers.losses.formulas.weights import mean_square, square_sum
from cmsolvers.losses.recipes.average_velocity import MEANFLOW, imf, meanflow
from cmsolvers.losses.recipes.diffusion import flow_matching
from support.columns import column
from support.velocities import (
    KEY,
    NULL,
    VelocityNet,
    adaptive,
    batch,
    extras,
    noised,
    pairs,
    same_gradient,
    total_derivative,
    z_of,
)

EXACT = 1e-12


def labels(x0: Tensor) -> Tensor:
    return torch.arange(len(x0)) % NULL


def dropped_by(x0: Tensor, probability: float, step: int = 0) -> Tensor:
    """Which labels the loss drops: element 8 of the stream of levels."""
    u = noise.uniform((len(x0), 9), KEY, stream=noise.LEVELS, draw=step, dtype=torch.float64)
    return u[:, 8] < probability


def meanflow_reference(
    net: Any, x0: Tensor, t: Tensor, s: Tensor, v: Tensor, p: float, eps: float, *, mean: bool
) -> Tensor:
    x = noised(x0, z_of(x0), t)
    aim = v - column(t - s) * total_derivative(net, x, t, s, v)
    square = ((net(x, t, s) - aim) ** 2).sum(1)
    return adaptive(square / x0.shape[1] if mean else square, p, eps)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("p", "eps"), [(0.0, 0.01), (0.75, 1e-3), (1.0, 0.01)])
def test_meanflow_is_the_published_formula(p: float, eps: float, mean: bool) -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    square = mean_square if mean else square_sum
    model = AverageVelocity(net)
    found = meanflow(model, x0, key=KEY, step=0, levels=(t, s), p=p, eps=eps, square=square)
    v = z_of(x0) - x0
    wanted = meanflow_reference(net, x0, t, s, v, p, eps, mean=mean)
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=EXACT, atol=EXACT)
    same_gradient(found.loss, wanted.mean(), net, EXACT)


def test_meanflow_is_flow_matching_where_s_is_t() -> None:
    net, x0, (t, _) = VelocityNet(), batch(), pairs()
    model = AverageVelocity(net)
    found = meanflow(model, x0, key=KEY, step=0, levels=t, p=0.0, square=mean_square)
    wanted = flow_matching(model, x0, key=KEY, step=0, levels=t)
    same_gradient(found.loss, wanted.loss.double(), net, EXACT)


def test_a_finite_difference_is_close_to_the_derivative() -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model = AverageVelocity(net)
    exact = meanflow(model, x0, key=KEY, step=0, levels=(t, s), p=0.0)
    close = meanflow(
        model, x0, key=KEY, step=0, levels=(t, s), p=0.0, derivative="finite_difference"
    )
    gap = (close.per_sample - exact.per_sample).abs() / exact.per_sample
    assert 0.0 < float(gap.max()) < 1e-6
    assert "derivative_error" in close.diagnostics


def test_the_derivative_leaves_autocast() -> None:
    seen: list[torch.dtype] = []

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            made = self.linear(x) * (1 + t[:, None] + s[:, None]).to(x.dtype)
            seen.append(self.linear(x).dtype)
            return made

    model, x0 = AverageVelocity(Watched()), batch(8).float()
    meanflow(model, x0, key=KEY, step=0)  # the first derivative is looked at by further passes
    for full, wanted in ((True, torch.float32), (False, torch.bfloat16)):
        seen.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = meanflow(model, x0, key=KEY, step=0, full_precision=full)
        assert seen == [wanted, torch.bfloat16]
        found.loss.backward()
        assert float(model.net.linear.weight.grad.norm()) > 0.0
        model.zero_grad()


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_guidance_is_in_the_velocity(kappa: float) -> None:
    net, x0, (t, s), omega = VelocityNet(), batch(), pairs(), 1.5
    model, label = AverageVelocity(net), labels(x0)
    found = meanflow(
        model,
        x0,
        key=KEY,
        step=0,
        levels=(t, s),
        p=0.0,
        extra_args={"label": label},
        label_dropout=LabelDropout("label", 0.3, NULL),
        guidance=Guidance("label", NULL, omega, kappa, (0.1, 0.8)),
    )
    dropped = dropped_by(x0, 0.3)
    assert 0 < int(dropped.sum()) < len(x0)
    null = torch.full_like(label, NULL)
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    with torch.no_grad():
        alone, with_label = net(x, t, t, null), net(x, t, t, label)
    guided = omega * v + kappa * with_label + (1 - omega - kappa) * alone
    inside = (t >= 0.1) & (t <= 0.8) & ~dropped
    assert 0 < int(inside.sum()) < len(x0)
    v = torch.where(column(inside), guided, v)
    used = torch.where(dropped, NULL, label)
    wanted = meanflow_reference(
        lambda x, t, s: net(x, t, s, used), x0, t, s, v, 0.0, 1.0, mean=False
    )
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=EXACT, atol=EXACT)
    same_gradient(found.loss, wanted.mean(), net, EXACT)


def test_guidance_of_scale_one_is_none() -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    model, given = AverageVelocity(net), {"label": labels(x0)}
    plain = meanflow(model, x0, key=KEY, step=0, levels=(t, s), extra_args=given)
    guided = meanflow(
        model,
        x0,
        key=KEY,
        step=0,
        levels=(t, s),
        extra_args=given,
        guidance=Guidance("label", NULL),
    )
    torch.testing.assert_close(guided.per_sample, plain.per_sample, rtol=1e-11, atol=1e-12)


def test_mixed_guidance_is_guidance_with_other_numbers() -> None:
    t = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    mixed = MixedGuidance("label", NULL, scale=2.5, mix=0.4)
    omega, kappa = mixed.weights(t)
    torch.testing.assert_close(omega, torch.full_like(t, 0.4 * 2.5))
    torch.testing.assert_close(kappa, torch.full_like(t, 0.6))
    fading = MixedGuidance("label", NULL, scale=2.5, mix=0.4, decay_from=0.75).weights(t)[0]
    assert bool((fading[t <= 0.75] == omega[t <= 0.75]).all())
    q = torch.tensor((1 - 0.9) / 0.25, dtype=torch.float64)
    strength = 1 - torch.exp(-0.025 * q / (1 - q))
    assert float(fading[36]) == pytest.approx(0.4 * (1 + float(strength) * 1.5), rel=1e-12)
    assert float(fading[-1]) == pytest.approx(0.4, abs=1e-12)


def test_mixed_guidance_keeps_to_its_interval_and_takes_no_other_weights() -> None:
    t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    mixed = MixedGuidance("label", NULL, interval=(0.25, 0.75), scale=2.0, mix=0.4)
    omega, kappa = mixed.weights(t)
    inside = (t > 0.25) & (t < 0.75)
    torch.testing.assert_close(omega, torch.where(inside, 0.8, 1.0).double())
    torch.testing.assert_close(kappa, torch.where(inside, 0.6, 0.0).double())
    with pytest.raises(TypeError, match="omega"):
        MixedGuidance("label", NULL, omega=3.0)  # type: ignore[call-arg]
    for wrong in ({"mix": 0.0}, {"decay_from": 0.0}, {"interval": (0.5, 0.1)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MixedGuidance("label", NULL, **wrong)  # type: ignore[arg-type]


def test_guidance_needs_labels() -> None:
    model, x0 = AverageVelocity(VelocityNet()), batch(4)
    with pytest.raises(ValueError, match=r"extra_args\['label'\] must be a tensor of labels"):
        meanflow(model, x0, key=KEY, step=0, guidance=Guidance("label", NULL, 2.0))
    with pytest.raises(ValueError, match="interval"):
        Guidance("label", NULL, interval=(0.5, 0.1))


@pytest.mark.parametrize("name", ["imagenet", "cifar"])
def test_published_settings(name: str) -> None:
    model, x0 = AverageVelocity(VelocityNet()), batch(4096)
    found = meanflow(model, x0, key=KEY, step=0, **MEANFLOW[name])
    t, s = found.levels
    share = float((t == s).double().mean())
    if name == "imagenet":
        assert share == pytest.approx(0.75, abs=0.03)
    else:
        assert 0.25 < share < 0.40
        logit = torch.logit(t)
        assert float(logit.mean()) == pytest.approx(-0.6, abs=0.1)
        assert float(logit.std()) == pytest.approx(1.6, abs=0.1)


# --- improved MeanFlow ---------------------------------------------------------------------------


def imf_reference(
    net: Any, x0: Tensor, t: Tensor, s: Tensor, v: Tensor, tangent: Tensor, p: float, eps: float
) -> Tensor:
    """Both terms of a network of two heads."""
    x = noised(x0, z_of(x0), t)
    rate = total_derivative(lambda x, t, s: net(x, t, s)[0], x, t, s, tangent)
    u, head = net(x, t, s)
    average = ((u + column(t - s) * rate - v) ** 2).sum(1)
    return adaptive(average, p, eps) + adaptive(((head - v) ** 2).sum(1), p, eps)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_imf_is_the_published_formula(p: float) -> None:
    net, x0, (t, s) = VelocityNet(heads=2), batch(), pairs()
    found = imf(VelocityHeads(net), x0, key=KEY, step=0, levels=(t, s), p=p)
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    with torch.no_grad():
        tangent = net(x, t, t)[1]
    wanted = imf_reference(net, x0, t, s, v, tangent, p, 0.01)
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=EXACT, atol=EXACT)
    same_gradient(found.loss, wanted.mean(), net, EXACT)
    other = imf_reference(net, x0, t, s, v, v, p, 0.01)
    assert float((found.per_sample - other.detach()).abs().max()) > 1e-4


def test_imf_without_a_head_takes_the_diagonal() -> None:
    net, x0, (t, s) = VelocityNet(), batch(), pairs()
    found = imf(AverageVelocity(net), x0, key=KEY, step=0, levels=(t, s), p=0.0)
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    with torch.no_grad():
        tangent = net(x, t, t)
    rate = total_derivative(net, x, t, s, tangent)
    wanted = ((net(x, t, s) + column(t - s) * rate - v) ** 2).sum(1)
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=EXACT, atol=EXACT)
    same_gradient(found.loss, wanted.mean(), net, EXACT)


def test_imf_guidance_is_an_input() -> None:
    net, x0, (t, s) = VelocityNet(heads=2), batch(64), pairs(64)
    label = labels(x0)
    guidance = GuidanceInputs("label", NULL)
    found = imf(
        VelocityHeads(net),
        x0,
        key=KEY,
        step=0,
        levels=(t, s),
        p=1.0,
        extra_args={"label": label},
        label_dropout=LabelDropout("label", 0.3, NULL),
        guidance=guidance,
    )
    dropped = dropped_by(x0, 0.3)
    u = extras(x0, 3)
    omega, one, zero = 8.0 ** u[:, 0], torch.ones_like(t), torch.zeros_like(t)
    low = torch.where(t == s, 0.0, u[:, 1] / 2)
    high = torch.where(t == s, 1.0, 0.5 + u[:, 2] / 2)
    used = torch.where((low <= t) & (t <= high), omega, one)
    assert 0 < int((used == 1).sum()) < len(x0)
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    seen = torch.where(dropped, NULL, label)
    with torch.no_grad():
        v_c = net(x, t, t, seen, used, zero, one)[1]
        v_u = net(x, t, t, torch.full_like(label, NULL), one, zero, one)[1]
    gain = torch.where(dropped, zero, 1 - 1 / used)
    aim = v + column(gain) * (v_c - v_u)
    wanted = imf_reference(
        lambda x, t, s: net(x, t, s, seen, omega, low, high), x0, t, s, aim, v_c, 1.0, 0.01
    )
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=EXACT, atol=EXACT)
    same_gradient(found.loss, wanted.mean(), net, EXACT)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_scales_have_the_density_of_a_power(power: float) -> None:
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    omega = GuidanceInputs("label", NULL, largest=8.0, power=power).scales(u)
    assert float(omega.min()) >= 1.0 and float(omega.max()) <= 8.0
    # The mean of omega^power under a density omega^-power is 7 / its integral.
    integral = {0.0: 7.0, 1.0: float(torch.tensor(8.0).log()), 2.0: 1 - 1 / 8}[power]
    assert float((omega**power).mean()) == pytest.approx(7.0 / integral, rel=1e-3)


def test_a_network_of_one_head_is_refused_where_two_are_needed() -> None:
    model = VelocityHeads(VelocityNet(heads=1))
    with pytest.raises(TypeError, match="must return two tensors"):
        imf(model, batch(4), key=KEY, step=0)
    u = model(batch(4), 0.5, 0.2)
    assert u.shape == (4, 3)


def test_two_heads_through_a_wrapper() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **extra: Any) -> Any:
            return self.module(*args, **extra)

    net, x0 = VelocityNet(heads=2), batch()
    plain = imf(VelocityHeads(net), x0, key=KEY, step=0)
    wrapped = imf(Wrapper(VelocityHeads(net)), x0, key=KEY, step=0)
    torch.testing.assert_close(wrapped.per_sample, plain.per_sample, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_small_batches_and_other_dtypes(size: int, dtype: torch.dtype) -> None:
    net = VelocityNet(heads=2).to(dtype)
    x0 = batch(4)[:size].to(dtype)
    one = VelocityNet().to(dtype)
    for loss, model in ((imf, VelocityHeads(net)), (meanflow, AverageVelocity(one))):
        found = loss(model, x0, key=KEY, step=0, reduction="sum")
        found.loss.backward()
        assert found.per_sample.shape == (size,)
        assert bool(found.loss.isfinite())


def test_guidance_without_dropped_labels_gets_a_warning() -> None:
    ONCE.reset()
    x0 = batch()
    model, guidance = AverageVelocity(VelocityNet()), Guidance("label", NULL, 1.5, 0.0)
    options: dict[str, Any] = {"key": KEY, "step": 0, "extra_args": {"label": labels(x0)}}
    with pytest.warns(UserWarning, match="null label, which nothing trains"):
        meanflow(model, x0, guidance=guidance, **options)
    ONCE.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dropped = LabelDropout("label", 0.5, NULL)
        meanflow(model, x0, guidance=guidance, label_dropout=dropped, **options)
