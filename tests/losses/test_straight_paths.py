"""Flow matching and reflow against plain torch in float64, and reflow at exact flows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers.denoisers import from_flow
from cmsolvers.denoisers.flow_maps import AverageVelocity, TrigFlowMap
from cmsolvers.losses.evaluation.labels import LabelDropout
from cmsolvers.losses.formulas.velocity_guidance import Guidance
from cmsolvers.losses.formulas.weights import pseudo_huber
from cmsolvers.losses.recipes.diffusion import flow_matching
from cmsolvers.losses.recipes.reflow import reflow
from cmsolvers.losses.times.flow_times import UShaped
from cmsolvers.processes.coordinates import FLOW
from cmsolvers.schedules import karras_sigmas
from support.columns import column
from support.orders import slope
from support.stationary import MEAN, STD, exact_denoiser, exact_velocity
from support.velocities import (
    KEY,
    NULL,
    VelocityNet,
    batch,
    noised,
    pairs,
    same_gradient,
    z_of,
)

EXACT = 1e-12


def test_flow_matching_is_the_published_formula() -> None:
    net, x0, (t, _) = VelocityNet(), batch(), pairs()
    found = flow_matching(AverageVelocity(net), x0, key=KEY, step=0, levels=t)
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    same_gradient(found.loss, ((net(x, t, t) - v) ** 2).mean(), net, EXACT)
    weighted = flow_matching(
        AverageVelocity(net), x0, key=KEY, step=0, levels=t, weight=lambda t: 1 / (1 + t)
    )
    wanted = (((net(x, t, t) - v) ** 2).mean(1) / (1 + t)).mean()
    same_gradient(weighted.loss, wanted, net, EXACT)


def test_flow_matching_of_a_denoiser_and_on_a_circle() -> None:
    net, x0, (t, _) = VelocityNet(), batch(), pairs()
    told: Any = lambda x, t: net(x, t, t)  # noqa: E731
    denoiser = from_flow(told)
    found = flow_matching(denoiser, x0, key=KEY, step=0, levels=t)
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    same_gradient(found.loss, ((net(x, t, t) - v) ** 2).mean(), net, 1e-11)
    angle = 1.5 * t
    circle = flow_matching(TrigFlowMap(net, 0.5, second="end"), x0, key=KEY, step=0, levels=angle)
    cos, sin = column(angle.cos()), column(angle.sin())
    x, v = cos * x0 + sin * 0.5 * z_of(x0), -sin * x0 + cos * 0.5 * z_of(x0)
    wanted = ((0.5 * net(x / 0.5, angle, angle) - v) ** 2).mean()
    same_gradient(circle.loss, wanted, net, EXACT)


def test_flow_matching_drops_labels_and_takes_guidance() -> None:
    net, x0, (t, _) = VelocityNet(), batch(), pairs()
    label = torch.arange(32) % NULL
    dropout = LabelDropout("label", 0.4, NULL)
    options: dict[str, Any] = {"key": KEY, "step": 0, "levels": t, "label_dropout": dropout}
    found = flow_matching(AverageVelocity(net), x0, extra_args={"label": label}, **options)
    x, v = noised(x0, z_of(x0), t), z_of(x0) - x0
    kept = ((net(x, t, t, label) - v) ** 2).mean(1).detach()
    gone = ((net(x, t, t, torch.full_like(label, NULL)) - v) ** 2).mean(1).detach()
    dropped = (found.per_sample - gone).abs() < 1e-12
    assert 5 < int(dropped.sum()) == int(found.diagnostics["labels_dropped"]) < 25
    torch.testing.assert_close(found.per_sample[~dropped], kept[~dropped], rtol=EXACT, atol=EXACT)
    guided = flow_matching(
        AverageVelocity(net),
        x0,
        extra_args={"label": label},
        guidance=Guidance("label", NULL, 1.0, 0.7),
        **options,
    )
    with torch.no_grad():
        moved = v + 0.7 * (net(x, t, t, label) - net(x, t, t, torch.full_like(label, NULL)))
    aim = torch.where(column(dropped), v, moved)
    seen = torch.where(dropped, NULL, label)
    same_gradient(guided.loss, ((net(x, t, t, seen) - aim) ** 2).mean(), net, EXACT)


# --- reflow --------------------------------------------------------------------------------------


def test_reflow_on_given_pairs() -> None:
    net, x0, (t, _) = VelocityNet(), batch(), pairs()
    z = batch(seed=9)
    found = reflow(AverageVelocity(net), x0, key=KEY, step=0, levels=t, noise=z)
    x = noised(x0, z, t)
    same_gradient(found.loss, ((net(x, t, t) - (z - x0)) ** 2).mean(), net, EXACT)
    one = torch.ones_like(t)
    distilled = reflow(AverageVelocity(net), x0, key=KEY, step=0, levels=1.0, noise=z)
    same_gradient(distilled.loss, ((z - net(z, one, one) - x0) ** 2).mean(), net, EXACT)
    huber = reflow(
        AverageVelocity(net), x0, key=KEY, step=0, levels=t, noise=z, distance=pseudo_huber(0.1)
    )
    norm = ((net(x, t, t) - (z - x0)) ** 2).sum(1)
    same_gradient(huber.loss, ((norm + 0.01).sqrt() - 0.1).mean(), net, EXACT)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_teacher_makes_the_pair(method: str) -> None:
    net, old, x0, (t, _) = VelocityNet(), VelocityNet(seed=4), batch(), pairs()
    found = reflow(
        AverageVelocity(net),
        x0,
        key=KEY,
        step=3,
        levels=t,
        teacher=AverageVelocity(old),
        steps=4,
        solver=method,
    )
    z = z_of(x0, 3)
    y = z
    with torch.no_grad():
        for a, b in pairwise([1.0, 0.75, 0.5, 0.25, 0.0]):
            here, there = torch.full_like(t, a), torch.full_like(t, b)
            d = old(y, here, here)
            if method == "heun" and b > 0:
                d = (d + old(y + (b - a) * d, there, there)) / 2
            y = y + (b - a) * d
    wanted = ((net(noised(y, z, t), t, t) - (z - y)) ** 2).mean()
    same_gradient(found.loss, wanted, net, EXACT)


class Straight(torch.nn.Module):
    """The velocity of reflow's straight paths for data N(MEAN, STD^2): z -> MEAN + STD z."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        t = column(t)
        z = (x - (1 - t) * MEAN) / ((1 - t) * STD + t)
        return z - (MEAN + STD * z)


class Curved(torch.nn.Module):
    """The velocity of the flow that the pairs are made with."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return exact_velocity(FLOW, x, t)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_reflow_vanishes_at_straight_paths_at_the_order_of_the_ode(method: str, order: int) -> None:
    x0 = batch(64)
    teacher = AverageVelocity(Curved())
    steps, errors = [8, 16, 32, 64, 128], []
    for n in steps:
        options: dict[str, Any] = {"key": KEY, "step": 0, "teacher": teacher, "steps": n}
        found = reflow(AverageVelocity(Straight()), x0, solver=method, **options)
        errors.append(found.loss.item() ** 0.5)
    assert -slope(errors, steps) == pytest.approx(-order, abs=0.15)
    wrong = reflow(teacher, x0, solver=method, **options)
    assert wrong.loss.item() ** 0.5 > 20 * errors[-1]


def test_a_teacher_in_karras_coordinates() -> None:
    x0, errors = batch(64), []
    for n in (18, 36, 72):
        found = reflow(
            AverageVelocity(Straight()), x0, key=KEY, step=0, teacher=exact_denoiser, steps=n
        )
        errors.append(found.loss.item() ** 0.5)
    # Order 2 until the data in the state at sigma = 80 is left, which pure noise ignores.
    assert errors[0] > 3 * errors[1] > 6 * errors[2] and errors[2] < 6e-3
    z = z_of(x0)
    y = 80.0 * z
    for a, b in pairwise(karras_sigmas(18).tolist()):
        d = (y - exact_denoiser(y, a)) / a
        if b > 0:
            d = (d + (y + (b - a) * d - exact_denoiser(y + (b - a) * d, b)) / b) / 2
        y = y + (b - a) * d
    t = torch.full((64,), 0.5, dtype=torch.float64)
    wanted = ((Straight()(noised(y, z, t), t, t) - (z - y)) ** 2).mean()
    model = AverageVelocity(Straight())
    found = reflow(model, x0, key=KEY, step=0, levels=0.5, teacher=exact_denoiser, steps=18)
    torch.testing.assert_close(found.loss, wanted, rtol=1e-10, atol=0.0)


def test_reflow_refuses_what_makes_no_pair() -> None:
    model, x0 = AverageVelocity(VelocityNet()), batch()
    with pytest.raises(ValueError, match=r"either noise or a teacher.*got neither"):
        reflow(model, x0, key=KEY, step=0)
    with pytest.raises(ValueError, match=r"either noise or a teacher.*got both"):
        reflow(model, x0, key=KEY, step=0, noise=x0, teacher=AverageVelocity(VelocityNet()))
    with pytest.raises(ValueError, match="noise must be like x0"):
        reflow(model, x0, key=KEY, step=0, noise=x0[:3])
    with pytest.raises(ValueError, match="solver must be"):
        reflow(
            model, x0, key=KEY, step=0, teacher=AverageVelocity(VelocityNet()), solver="midpoint"
        )


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_small_batches_and_other_dtypes(size: int, dtype: torch.dtype) -> None:
    net, old = VelocityNet().to(dtype), VelocityNet(seed=1).to(dtype)
    x0 = batch(4)[:size].to(dtype)
    for options in ({"noise": x0}, {"teacher": AverageVelocity(old), "steps": 3}):
        found = reflow(
            AverageVelocity(net), x0, key=KEY, step=0, reduction="sum", times=UShaped(), **options
        )
        found.loss.backward()
        assert found.per_sample.shape == (size,)
        assert bool(found.loss.isfinite())
