"""Progressive distillation and shortcuts against plain torch in float64, and at exact flows."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers.denoisers import EDM, from_flow
from cmsolvers.denoisers.flow_maps import AverageVelocity, TrigFlowMap
from cmsolvers.denoisers.second_time import step_index
from cmsolvers.losses.recipes.progressive import (
    flow_velocity,
    halfway_angle,
    halfway_level,
    halfway_rho,
    progressive_distillation,
    snr_plus_one,
    truncated_snr,
)
from cmsolvers.losses.recipes.shortcut import shortcut
from cmsolvers.losses.times.flow_times import AnglePairs, DyadicPairs
from cmsolvers.processes.coordinates import FLOW, KARRAS, Coordinates
from cmsolvers.processes.flows import TrigFlow
from cmsolvers.schedules import karras_sigmas
from support.columns import column
from support.orders import slope
from support.stationary import exact_denoiser, exact_map
from support.velocities import (
    KEY,
    NULL,
    VelocityNet,
    batch,
    pairs,
    same_gradient,
    z_of,
)

EXACT = 1e-12


def of_kind(kind: str, seed: int) -> Any:
    net = VelocityNet(seed=seed)
    if kind == "flow map":
        return AverageVelocity(net)
    if kind == "trigflow":
        return TrigFlowMap(net, 1.0, second="end")
    one: Any = OneTime(net)
    return from_flow(one) if kind == "flow" else EDM(one)


class OneTime(torch.nn.Module):
    def __init__(self, net: VelocityNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        made: Tensor = self.net(x, t, t)
        return made


def clean(kind: str, model: Any, x: Tensor, level: Tensor) -> Tensor:
    """D by its definition."""
    net = model.net.net if isinstance(model.net, OneTime) else model.net
    t = column(level)
    if kind in ("flow", "flow map"):
        return x - t * net(x, level, level)
    if kind == "trigflow":
        return t.cos() * x - t.sin() * net(x, level, level)
    variance = t**2 + 0.25
    made = net(x / variance.sqrt(), level.log() / 4, level.log() / 4)
    return 0.25 / variance * x + 0.5 * t / variance.sqrt() * made


def path_of(kind: str) -> tuple[Any, Any]:
    if kind in ("flow", "flow map"):
        return (lambda t: 1 - t), (lambda t: t)
    if kind == "trigflow":
        return torch.cos, torch.sin
    return torch.ones_like, (lambda t: t)


def target(kind: str, teacher: Any, x: Tensor, t: Tensor, u: Tensor, s: Tensor) -> Tensor:
    """x_0 of the student's step, from algorithm 2 of the paper."""
    alpha, sigma = path_of(kind)
    with torch.no_grad():
        d = clean(kind, teacher, x, t)
        y = column(alpha(u)) * d + column(sigma(u) / sigma(t)) * (x - column(alpha(t)) * d)
        d = clean(kind, teacher, y, u)
        y = column(alpha(s)) * d + column(sigma(s) / sigma(u)) * (y - column(alpha(u)) * d)
        kept = column(sigma(s) / sigma(t))
        return (y - kept * x) / (column(alpha(s)) - kept * column(alpha(t)))


@pytest.mark.parametrize("kind", ["flow", "flow map", "trigflow", "karras"])
def test_progressive_distillation_is_the_published_formula(kind: str) -> None:
    student, teacher, x0 = of_kind(kind, 0), of_kind(kind, 1).eval(), batch()
    t, s = pairs(equal=0)
    if kind == "karras":
        t, s = 3 * t + 0.1, 3 * s * 0.9
    found = progressive_distillation(
        student, x0, key=KEY, step=0, levels=(t, s), teacher=teacher, halfway=halfway_level
    )
    alpha, sigma = path_of(kind)
    x = column(alpha(t)) * x0 + column(sigma(t)) * z_of(x0)
    aim = target(kind, teacher, x, t, (t + s) / 2, s)
    weight = (alpha(t) / sigma(t)).square().clamp_min(1.0)
    wanted = weight * ((clean(kind, student, x, t) - aim) ** 2).mean(1)
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=1e-10, atol=1e-11)
    same_gradient(found.loss, wanted.mean(), student.net, 1e-10)


def test_a_teacher_in_other_coordinates() -> None:
    teacher, student, x0 = of_kind("karras", 1), of_kind("flow", 0), batch()
    t, s = pairs(equal=0)
    t, s = 0.9 * t + 0.05, 0.8 * s
    found = progressive_distillation(
        student, x0, key=KEY, step=0, levels=(t, s), teacher=teacher, halfway=halfway_level
    )
    x, u = column(1 - t) * x0 + column(t) * z_of(x0), (t + s) / 2
    with torch.no_grad():
        d = clean("karras", teacher, x / column(1 - t), t / (1 - t))
        y = column(1 - u) * d + column(u / t) * (x - column(1 - t) * d)
        d = clean("karras", teacher, y / column(1 - u), u / (1 - u))
        y = column(1 - s) * d + column(s / u) * (y - column(1 - u) * d)
        kept = column(s / t)
        aim = (y - kept * x) / (column(1 - s) - kept * column(1 - t))
    weight = ((1 - t) / t).square().clamp_min(1.0)
    wanted = weight * ((clean("flow", student, x, t) - aim) ** 2).mean(1)
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=1e-9, atol=1e-10)


def test_weights_are_errors_of_other_predictions() -> None:
    t = torch.linspace(0.05, 1.5, 30, dtype=torch.float64)
    error = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = t.cos(), t.sin()
    x, d = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def v(d: Tensor) -> Tensor:
        return alpha * (x - alpha * d) / sigma - sigma * d

    ratio = sigma / alpha
    torch.testing.assert_close((v(d + error) - v(d)) ** 2, snr_plus_one(ratio) * error**2)
    eps = ((alpha / sigma) * error) ** 2
    torch.testing.assert_close(truncated_snr(ratio) * error**2, torch.maximum(eps, error**2))
    level = ratio / (1 + ratio)
    torch.testing.assert_close((error / level) ** 2, flow_velocity(ratio) * error**2)


def test_levels_between() -> None:
    t, s = torch.tensor([0.9, 0.4]).double(), torch.tensor([0.5, 0.0]).double()
    torch.testing.assert_close(halfway_level(FLOW, t, s), (t + s) / 2)
    circle = Coordinates(TrigFlow(1.0))
    torch.testing.assert_close(halfway_angle(circle, t, s), (t + s) / 2)
    middle = halfway_angle(FLOW, torch.ones(1).double(), torch.zeros(1).double())
    torch.testing.assert_close(middle, torch.full((1,), 0.5).double())
    grid = karras_sigmas(9, append_zero=False)
    torch.testing.assert_close(halfway_rho(7.0)(KARRAS, grid[:-2:2], grid[2::2]), grid[1:-1:2])


def test_the_students_step_ends_where_two_steps_of_an_exact_teacher_do() -> None:
    """D* tends to the exact D at rate 1 in the step, so the exact student is stationary then."""
    model, x0, steps, errors = exact_map("flow"), batch(256), [0.4 / 2**k for k in range(6)], []
    for step in steps:
        found = progressive_distillation(
            model, x0, key=KEY, step=0, teacher=exact_map("flow"), levels=(0.6, 0.6 - step)
        )
        errors.append(found.loss.item() ** 0.5)
    assert -slope(errors, steps) == pytest.approx(1.0, abs=0.1)
    raw = model.net.raw
    model.net.raw = lambda x, t, s: 1.1 * raw(x, t, s)
    wrong = progressive_distillation(
        model, x0, key=KEY, step=0, teacher=exact_map("flow"), levels=(0.6, 0.6 - steps[-1])
    )
    assert wrong.loss.item() ** 0.5 > 5 * errors[-1]


def test_pure_noise_is_a_level() -> None:
    model = of_kind("flow", 0)
    found = progressive_distillation(
        model,
        batch(),
        key=KEY,
        step=0,
        teacher=of_kind("flow", 1),
        times=AnglePairs(1, sigma_max=math.inf),
    )
    t, s = found.levels
    assert bool((1.0 - t < 1e-15).all()) and bool((s == 0.0).all())
    assert bool(found.per_sample.isfinite().all())


def test_the_number_of_steps_halves() -> None:
    times = AnglePairs(64, last=1, total=700, sigma_max=math.inf)
    seen = [times.steps_at(step) for step in range(0, 801, 100)]
    assert seen == [64, 32, 16, 8, 4, 2, 1, 1, 1]
    model, teacher = of_kind("flow", 0), of_kind("flow", 1)
    for step in (0, 99, 100, 350, 699):
        assert float(times.steps_at(torch.tensor([step]))) == times.steps_at(step)
        for given in (step, torch.tensor([step])):
            found = progressive_distillation(
                model, batch(), key=KEY, step=given, teacher=teacher, times=times
            )
            angle = torch.atan(found.levels[0] / (1 - found.levels[0])) / (torch.pi / 2)
            place = angle * times.steps_at(step)
            torch.testing.assert_close(place, place.round(), rtol=0.0, atol=1e-9)
    with pytest.raises(ValueError, match="last must be steps over a power of 2"):
        AnglePairs(64, last=3)
    with pytest.raises(ValueError, match="total must be given"):
        AnglePairs(64, last=2)


# --- shortcut ------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.1])
def test_shortcut_is_the_published_formula(floor: float, clip: float | None) -> None:
    net, old, x0 = VelocityNet(), VelocityNet(seed=2), batch(48)
    model = AverageVelocity(net, second=step_index(128))
    target = AverageVelocity(old, second=step_index(128))
    label = torch.arange(48) % NULL
    found = shortcut(
        model,
        x0,
        key=KEY,
        step=0,
        target=target,
        floor=floor,
        clip=clip,
        extra_args={"label": label},
    )
    t, s = found.levels
    few = 48 // 8
    z = z_of(x0)
    x = column(1 - t) * x0 + column(t + floor * (1 - t)) * z
    v = (1 - floor) * z - x0
    bound = float("inf") if clip is None else clip
    with torch.no_grad():
        d, index = (t - s)[:few], -torch.log2(t - s)[:few]
        first = old(x[:few], t[:few], index + 1, label[:few])
        middle = (x[:few] - column(d / 2) * first).clamp(-bound, bound)
        second = old(middle, t[:few] - d / 2, index + 1, label[:few])
        v[:few] = ((first + second) / 2).clamp(-bound, bound)
    told = torch.cat([index, torch.full((48 - few,), 7.0, dtype=torch.float64)])
    wanted = ((net(x, t, told, label) - v) ** 2).mean(1)
    torch.testing.assert_close(found.per_sample, wanted.detach(), rtol=1e-11, atol=1e-11)
    same_gradient(found.loss, wanted.mean(), net, 1e-11)


@pytest.mark.parametrize("share", [0.0, 0.125, 0.5, 1.0])
def test_shares_of_rows(share: float) -> None:
    model, x0 = AverageVelocity(VelocityNet(), second="length"), batch(40)
    times = DyadicPairs(share=share)
    found = shortcut(model, x0, key=KEY, step=1, share=share, times=times)
    t, s = found.levels
    assert int((t > s).sum()) == int(40 * share)
    assert bool((t > s)[: int(40 * share)].all())


@pytest.mark.parametrize(
    ("share", "given", "text"),
    [
        (0.5, {"times": DyadicPairs(share=0.25)}, "got 0.5, 20 of 40 samples, where 10 have s < t"),
        (0.125, {"times": DyadicPairs(share=0.25)}, "5 of 40 samples, where 10 have s < t"),
        (0.125, {"levels": (0.5, 0.25)}, "5 of 40 samples, where 40 have s < t"),
        (0.125, {"levels": 0.5}, "5 of 40 samples, where 0 have s < t"),
        (0.5, {"levels": (0.5, torch.tensor([0.5, 0.25] * 20))}, "20 of 40 .* 20 have s < t"),
    ],
)
def test_a_share_that_the_levels_have_not(share: float, given: dict[str, Any], text: str) -> None:
    model, x0 = AverageVelocity(VelocityNet(), second="length"), batch(40)
    with pytest.raises(ValueError, match=f"share must be that of times, .* {text}"):
        shortcut(model, x0, key=KEY, step=1, share=share, **given)


@pytest.mark.parametrize(
    ("share", "levels"), [(1.0, (0.5, 0.25)), (0.0, 0.5), (0.01, 0.5)], ids=["all", "none", "< 1"]
)
def test_a_share_that_the_levels_have(share: float, levels: Any) -> None:
    model, x0 = AverageVelocity(VelocityNet(), second="length"), batch(40)
    assert bool(shortcut(model, x0, key=KEY, step=1, share=share, levels=levels).loss.isfinite())


def test_the_exact_map_composes() -> None:
    model, x0 = exact_map("length"), batch(64)
    options: dict[str, Any] = {"times": DyadicPairs(share=1.0), "share": 1.0, "floor": 0.0}
    found = shortcut(model, x0, key=KEY, step=0, clip=None, **options)
    assert float(found.per_sample.max()) < 1e-20
    raw = model.net.raw
    model.net.raw = lambda x, t, s: 1.1 * raw(x, t, s)
    wrong = shortcut(model, x0, key=KEY, step=0, clip=None, **options)
    assert wrong.loss.item() > 1e-5


def test_the_index_of_a_step() -> None:
    index = step_index(128)
    t = torch.tensor([1.0, 0.5, 0.5, 1 / 64, 1 / 128, 0.3], dtype=torch.float64)
    s = torch.tensor([0.0, 0.0, 0.25, 0.0, 0.0, 0.3], dtype=torch.float64)
    assert index(t, s).tolist() == [0.0, 1.0, 2.0, 6.0, 7.0, 7.0]
    with pytest.raises(ValueError, match="power of 2"):
        step_index(100)


def test_shortcut_refuses_other_maps() -> None:
    with pytest.raises(ValueError, match="must be an average velocity"):
        shortcut(TrigFlowMap(VelocityNet(), second="end"), batch(), key=KEY, step=0)


@pytest.mark.parametrize("size", [0, 1, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_small_batches_and_other_dtypes(size: int, dtype: torch.dtype) -> None:
    model = AverageVelocity(VelocityNet().to(dtype), second=step_index())
    x0 = batch(16)[:size].to(dtype)
    teacher = copy.deepcopy(model).eval()
    for loss, options in ((shortcut, {}), (progressive_distillation, {"teacher": teacher})):
        found = loss(model, x0, key=KEY, step=0, reduction="sum", **options)
        found.loss.backward()
        assert found.per_sample.shape == (size,)
        assert bool(found.loss.isfinite())


def test_exact_denoiser_as_teacher_of_a_karras_student() -> None:
    model = exact_map("denoiser")
    times = AnglePairs(256, sigma_max=20.0)
    found = progressive_distillation(
        model, batch(), key=KEY, step=0, teacher=exact_denoiser, times=times
    )
    assert found.loss.item() < 1e-3
