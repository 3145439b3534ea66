"""Truncated, latent and multistep consistency against their formulas, and at exact maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import DDPM, ConsistencyFunction, consistency_sample, noise
from cmsolvers.denoisers import (
    AverageVelocity,
    LatentConsistencyFunction,
    TrajectoryFunction,
    from_eps,
    from_flow,
    from_v,
)
from cmsolvers.losses import (
    AnnealedPairs,
    LabelDropout,
    TruncatedPairs,
    cd,
    ect,
    ict,
    lcm,
    mcd,
    norm,
    tcm,
)
from support.columns import column
from support.stationary import MOVES, exact_denoiser, exact_map, expected_gradient

F64 = torch.float64
SD, END = 0.5, 0.002
X0 = SD * noise.normal((8, 3), 1, dtype=F64)


class Net(nn.Module):
    """Smooth in x and its times; a few parameters in float64, and more inputs on request."""

    def __init__(self, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(3, 3, dtype=F64, generator=generator))
        self.b = nn.Parameter(torch.randn(3, 3, dtype=F64, generator=generator))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, *times: Tensor, **more: Tensor) -> Tensor:
        inputs = [*times, *more.values()]
        shift = sum(column(c.to(x.dtype)) * b for c, b in zip(inputs, self.b, strict=False))
        return self.drop(torch.tanh(x @ self.w + shift))


def compare(found: Any, expected: Tensor, net: Net) -> None:
    """Values per sample and gradients of their mean."""
    torch.testing.assert_close(found.per_sample, expected.detach(), rtol=1e-11, atol=1e-14)
    mine = torch.autograd.grad(found.loss, [net.w, net.b])
    theirs = torch.autograd.grad(expected.mean(), [net.w, net.b])
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)


def z_of(key: int, step: int) -> Tensor:
    return noise.normal(X0.shape, key, stream=noise.TRAINING, draw=step, dtype=F64)


def f_of(net: Net, x: Tensor, s: Tensor) -> Tensor:
    """A consistency function as its paper prints it."""
    s = column(s)
    c_skip = SD**2 / ((s - END) ** 2 + SD**2)
    c_out = (s - END) * SD / (s**2 + SD**2).sqrt()
    return c_skip * x + c_out * net(x / (s**2 + SD**2).sqrt(), 0.25 * s[:, 0].log())


# --- truncated -----------------------------------------------------------------------------------


def test_tcm_is_the_published_formula() -> None:
    """Targets below t' from the first stage, two means, the norm over t - r."""
    net, average, first = Net(0), Net(1), Net(2)
    t = torch.tensor([1.3, 5.0, 1.01, 1 + 1e-8, 30.0, 2.0, 80.0, 1 + 1e-8], dtype=F64)
    r = t * torch.tensor([0.6, 0.9, 0.9, 0.7, 0.8, 0.0, 0.9, 0.99], dtype=F64)
    found = tcm(
        ConsistencyFunction(net),
        X0,
        key=4,
        step=6,
        levels=(t, r),
        target=ConsistencyFunction(average),
        teacher=ConsistencyFunction(first),
    )
    z = z_of(4, 6)
    with torch.no_grad():
        y, told = X0 + column(r) * z, r.clamp_min(1e-3)
        aim = torch.where(column(r >= 1), f_of(average, y, told), f_of(first, y, told))
        aim = torch.where(column(r == 0), X0, aim)
    each = (f_of(net, X0 + column(t) * z, t) - aim).square().sum(1).sqrt() / (t - r)
    edge = torch.zeros(8, dtype=torch.bool)
    edge[[3, 7]] = True
    shares = torch.where(edge, 0.1 * 8 / 2, torch.tensor(8 / 6, dtype=F64))
    compare(found, each * shares, net)
    total = each[~edge].mean() + 0.1 * each[edge].mean()
    torch.testing.assert_close(found.loss, total, rtol=1e-12, atol=0)
    assert int(found.diagnostics["boundary_samples"]) == 2


def test_ect_is_improved_training_with_another_norm_and_other_levels() -> None:
    """So the limit that test_continuous_limits measures of `ict(distance=norm)`, sCM, is ECT's."""
    model, x0 = ConsistencyFunction(Net(0)), X0
    given = {
        "key": 1,
        "step": 2,
        "levels": (torch.full((8,), 0.9, dtype=F64), torch.full((8,), 0.8, dtype=F64)),
    }
    found = ect(model, x0, **given).loss
    assert torch.equal(found, ict(model, x0, distance=norm, **given).loss)
    assert not torch.equal(found, ict(model, x0, **given).loss)


def test_only_the_range_above_is_trained_and_dropout_falls_alike() -> None:
    masks: list[Tensor] = []

    def spy(module: nn.Module, inputs: Any, output: Tensor) -> None:
        masks.append(output == 0)

    nets = [Net(0, 0.5).train(), Net(0, 0.5).train()]
    for net in nets:
        net.drop.register_forward_hook(spy)
    student, first = map(ConsistencyFunction, nets)
    x0 = X0.repeat(20, 1)
    torch.manual_seed(0)
    found = tcm(student, x0, key=4, step=6, teacher=first)
    assert len(masks) == 3 and all(torch.equal(masks[0], mask) for mask in masks[1:])
    t, r = found.levels
    assert float(t.min()) == 1 + 1e-8 and bool((r < 1).any()) and bool((r >= 1).any())
    assert int(found.diagnostics["boundary_samples"]) == 40
    found.loss.backward()
    assert all(p.grad is None for p in first.parameters())


def test_levels_below_the_start_are_an_error() -> None:
    """The start of times of their own must be told to the loss."""
    model, x0 = ConsistencyFunction(lambda x, c: 0.0 * x), torch.ones(8, 3)
    given: dict[str, Any] = {"key": 0, "step": 0, "teacher": model}
    with pytest.raises(ValueError, match=r"start must be that of times.* got 1 for levels"):
        tcm(model, x0, times=TruncatedPairs(start=0.5), **given)
    found = tcm(model, x0, times=TruncatedPairs(start=0.5), start=0.5, **given)
    assert int(found.diagnostics["boundary_samples"]) == 2
    with pytest.raises(ValueError, match=r"got 1 for levels from 0\.7 on"):
        tcm(model, x0, levels=(0.7, 0.3), **given)


# --- latent --------------------------------------------------------------------------------------

CHAIN = DDPM(schedule="scaled_linear")
PLACES = torch.tensor([19, 39, 259, 499, 759, 979, 999, 119])


def latent_f(net: Net, x: Tensor, t: Tensor, out: str, factor: float, **more: Tensor) -> Tensor:
    """In the chain's own states x_t, as the paper prints it; t an index."""
    bar = column(CHAIN.alphas_bar[t])
    made, time = net(x, t.double(), **more), column(t.double()) * 10
    if out == "eps":
        clean = (x - (1 - bar).sqrt() * made) / bar.sqrt()
    elif out == "v":
        clean = bar.sqrt() * x - (1 - bar).sqrt() * made
    else:
        clean = made
    square = time**2 + SD**2
    return SD**2 / square * x + factor * time / square.sqrt() * clean


@pytest.mark.parametrize("out", ["eps", "v", "x0"])
@pytest.mark.parametrize(("scalings", "factor"), [("paper", SD), ("without sigma_data", 1.0)])
def test_latent_consistency_functions(out: Any, scalings: str, factor: float) -> None:
    net = Net(0)
    f = LatentConsistencyFunction(net, CHAIN, output=out, scalings=scalings)
    for places in (PLACES, torch.zeros(8, dtype=torch.int64)):
        bar = column(CHAIN.alphas_bar[places])
        x = noise.normal((8, 3), 2, dtype=F64)
        expected = latent_f(net, x, places, out, factor)
        found = f(x / bar.sqrt(), CHAIN.sigmas[places])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        if not places.any():  # the boundary: x_t itself
            torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guided", [True, False])
def test_lcm_is_the_published_formula(guided: bool) -> None:
    """Algorithm 1 in the chain's own states, with a DDIM step of the guided teacher."""
    net, average, teacher = Net(0), Net(1), Net(2)
    y, null = torch.linspace(-1, 1, 8, dtype=F64), torch.zeros(8, dtype=F64)
    low = (PLACES - 20).clamp_min(0)
    found = lcm(
        LatentConsistencyFunction(net, CHAIN, scalings="without sigma_data"),
        X0,
        key=4,
        step=6,
        levels=(CHAIN.sigmas[PLACES], CHAIN.sigmas[low]),
        target=LatentConsistencyFunction(average, CHAIN, scalings="without sigma_data"),
        teacher=from_eps(teacher, process=CHAIN),
        extra_args={"y": y},
        null_args={"y": null},
        guidance=(3.0, 15.0) if guided else None,
    )
    u = noise.uniform((8, 13), 4, stream=noise.LEVELS, draw=6, dtype=F64)[:, 12]
    w = 3.0 + 12.0 * u if guided else torch.zeros_like(u)
    told = {"y": y, "w": w} if guided else {"y": y}
    bar, bar_next = column(CHAIN.alphas_bar[PLACES]), column(CHAIN.alphas_bar[low])
    x = bar.sqrt() * X0 + (1 - bar).sqrt() * z_of(4, 6)
    with torch.no_grad():
        eps = [teacher(x, PLACES.double(), y=label) for label in (y, null)]
        eps_w = eps[0] + column(w) * (eps[0] - eps[1])
        clean = (x - (1 - bar).sqrt() * eps_w) / bar.sqrt()
        x_next = bar_next.sqrt() * clean + (1 - bar_next).sqrt() * eps_w
        aim = latent_f(average, x_next, low, "eps", 1.0, **told)
    residual = latent_f(net, x, PLACES, "eps", 1.0, **told) - aim
    each = ((residual**2 + 1e-6).sqrt() - 1e-3).mean(1)
    torch.testing.assert_close(found.per_sample, each.detach(), rtol=1e-7, atol=1e-9)
    mine = torch.autograd.grad(found.loss, [net.w, net.b])
    theirs = torch.autograd.grad(each.mean(), [net.w, net.b])
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_guidance_reaches_the_student_alone_and_covers_its_range() -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}

    def student(x: Tensor, t: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        seen["student"].append(scale)
        return 0.1 * x * column(scale).to(x.dtype)

    def teacher(x: Tensor, t: Tensor, **more: Tensor) -> Tensor:
        seen["teacher"].append(more["y"])
        assert set(more) == {"y"}
        return 0.1 * x

    x0 = SD * noise.normal((2000, 3), 1)
    y = torch.ones(2000)
    found = lcm(
        LatentConsistencyFunction(student, CHAIN),
        x0,
        key=4,
        step=6,
        teacher=from_eps(teacher, process=CHAIN),
        extra_args={"y": y},
        null_args={"y": 0 * y},
        guidance=(5.0, 15.0),
        guidance_name="scale",
        label_dropout=LabelDropout("y", 0.25, 0.0),
    )
    (a, b), (with_, without) = seen["student"], seen["teacher"]
    assert torch.equal(a, b) and a.dtype is torch.float32
    assert 5.0 <= float(a.min()) < 5.05 and 14.95 < float(a.max()) <= 15.0
    assert float(a.mean()) == pytest.approx(10.0, abs=0.2)
    assert float(with_.mean()) == pytest.approx(0.75, abs=0.03) and not without.any()
    assert int(found.diagnostics["labels_dropped"]) == int((with_ == 0).sum())
    with pytest.raises(ValueError, match="null_args must hold the teacher's arguments"):
        lcm(student, x0, key=4, step=6, teacher=teacher)
    with pytest.raises(ValueError, match="guidance must be"):
        lcm(student, x0, key=4, step=6, teacher=teacher, null_args={}, guidance=(9.0, 3.0))


def test_latent_functions_sample_in_four_steps() -> None:
    """Of an exact eps network a function begins as its x_0: data N(0, 0.25) come out narrower."""
    chain = CHAIN

    def eps(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
        bar = column(chain.alphas_bar.to(x.dtype)[t])
        return (1 - bar).sqrt() * x / (0.25 * bar + 1 - bar)

    f = LatentConsistencyFunction(eps, chain, scalings="without sigma_data", time_dtype=torch.int64)
    levels = chain.sigmas[[999, 759, 499, 259]]
    x = levels[0] * noise.normal((4000, 2), 0)
    w = torch.ones(4000)
    found = consistency_sample(f, x, levels, sigma_min=1e-4, seed=1, extra_args={"w": w})
    bar = float(chain.alphas_bar[259])
    kept = (0.25 * bar / (0.25 * bar + 1 - bar)) ** 0.5 * 0.5  # std of E[x_0 | x] at the last level
    assert 0.8 * kept < float(found.std()) < 1.05 * kept


# --- multistep -----------------------------------------------------------------------------------


def test_mcd_is_the_published_formula() -> None:
    """DDIM to the start of the segment, in flow coordinates: both sides as data."""
    net, average, teacher = Net(0), Net(1), Net(2)
    t = torch.tensor([0.02, 0.3, 0.26, 0.5, 0.75, 1.0, 0.25, 0.9], dtype=F64)
    s = torch.tensor([0.0, 0.28, 0.2, 0.45, 0.5, 0.97, 0.1, 0.1], dtype=F64)
    low = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.5, 0.75, 0.0, 0.75], dtype=F64)
    model, other = AverageVelocity(net), AverageVelocity(average)
    found = mcd(model, X0, key=4, step=6, levels=(t, s), target=other, teacher=from_flow(teacher))
    x = column(1 - t) * X0 + column(t) * z_of(4, 6)
    end = torch.maximum(s, low)
    with torch.no_grad():
        y = x + column(end - t) * teacher(x, t)
        aim = y + column(low - end) * average(y, end, low)
        aim = torch.where(column(end == 0), X0, aim)
    gain = column((1 - low) * (1 - low / (1 - low) * (1 - t) / t))
    made = x + column(low - t) * net(x, t, low)
    compare(found, ((made - aim) / gain).square().mean(1), net)
    cuts = mcd(
        model,
        X0,
        key=4,
        step=6,
        levels=(t, s),
        target=other,
        teacher=from_flow(teacher),
        segments=[1.0, 0.75, 0.5, 0.25, 0.0],
    )
    torch.testing.assert_close(cuts.per_sample, found.per_sample, rtol=1e-12, atol=0)


def test_one_segment_is_consistency_distillation() -> None:
    model = TrajectoryFunction(Net(0))
    teacher = TrajectoryFunction(Net(1))
    t = torch.tensor([0.05, 0.3, 1.0, 2.5, 7.0, 30.0, 80.0, 4.0], dtype=F64)
    given: dict[str, Any] = {"key": 4, "step": 6, "levels": (t, 0.8 * t), "teacher": teacher}
    one = mcd(model, X0, segments=[100.0, 0.0], **given)
    two = cd(model, X0, solver="euler", **given)
    torch.testing.assert_close(one.per_sample, two.per_sample, rtol=1e-10, atol=1e-13)
    several = mcd(model, X0, segments=[100.0, 6.0, 0.5, 0.0], **given)
    same = (t < 0.5).nonzero()[:, 0]
    torch.testing.assert_close(several.per_sample[same], two.per_sample[same])
    assert not torch.allclose(several.per_sample, two.per_sample, rtol=1e-2)
    with pytest.raises(ValueError, match="segments must be levels, descending to 0, in Karras"):
        mcd(model, X0, segments=4, **given)
    with pytest.raises(ValueError, match="segments must end in 0"):
        mcd(model, X0, segments=[100.0, 6.0], **given)


def test_mcd_is_still_at_an_exact_map_and_moves_a_wrong_one() -> None:
    times = AnnealedPairs(None, 400, 400, largest=0.99)
    model, options = exact_map("average velocity"), {"teacher": exact_denoiser, "solver": "heun"}
    size = expected_gradient(mcd, model, batches=16, times=times, **options).size
    raw = model.net.raw
    model.net.raw = lambda x, t, s: 1.3 * raw(x, t, s)
    wrong = expected_gradient(mcd, model, batches=16, times=times, **options)
    assert wrong.worst > MOVES and wrong.size > 100 * size


def test_v_networks_teach_too() -> None:
    teacher = from_v(Net(2), process=CHAIN)
    f = LatentConsistencyFunction(Net(0), CHAIN, output="v")
    assert lcm(f, X0, key=1, step=2, teacher=teacher, guidance=None).loss.isfinite()
