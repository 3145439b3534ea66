"""Consistency trajectories against their paper's formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.denoisers import AverageVelocity, TrajectoryFunction
from cmsolvers.losses import LogitNormal, LogNormal, RhoPairs, UniformTimes, ctm, square_sum
from support.columns import column
from support.loss_cases import SmallNet
from support.loss_formulas import F64, SEED, STEP, X0, Masked, U, Z, assert_same, small
from support.stationary import exact_denoiser

HIGH = torch.tensor([40.0, 5.0, 1.0, 0.6, 0.2, 2.0], dtype=F64)
LOW = torch.tensor([3.0, 1.0, 0.0, 0.5, 0.001, 0.1], dtype=F64)


def jump(net: Any, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """G = (s / t) x + (1 - s / t) g with EDM's scalings, sigma_data 0.5 and sigma_min 0.002."""
    square = column(t * t + 0.25)
    told = [0.25 * level.clamp_min(0.002).log() for level in (t, s)]
    g = 0.25 / square * x + column(0.5 * t) / square.sqrt() * net(x / square.sqrt(), *told)
    kept = column(s / t)
    return kept * x + (1 - kept) * g


def heun_by_hand(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    d = (x - exact_denoiser(x, t)) / column(t)
    y = x + column(s - t) * d
    return x + column(s - t) / 2 * (d + (y - exact_denoiser(y, s)) / column(s))


@pytest.mark.parametrize("balance", [0.7, "adaptive"])
@pytest.mark.parametrize("teacher", [None, exact_denoiser], ids=["pair", "teacher"])
@pytest.mark.parametrize("end", [0.0, 0.002])
def test_ctm_is_its_formula(end: float, teacher: Any, balance: Any) -> None:
    net = Masked(small())
    frozen = copy.deepcopy(net).requires_grad_(False)
    x = X0 + column(HIGH) * Z
    root = HIGH ** (1 / 7) + U[:, 0] * (LOW ** (1 / 7) - HIGH ** (1 / 7))
    u = torch.maximum(root**7, LOW)
    if teacher is None:
        y = X0 + column(u) * Z
    else:
        middle = (0.5 * (HIGH ** (1 / 7) + u ** (1 / 7))) ** 7
        y = heun_by_hand(heun_by_hand(x, HIGH, middle), middle, u)

    def compared(state: Tensor) -> Tensor:
        rows = torch.gt(LOW, end)
        start, stop = torch.where(rows, LOW, 1.0), torch.full_like(LOW, end)
        return torch.where(column(rows), jump(frozen, state, start, stop), state)

    one, other = compared(jump(net, x, HIGH, LOW)), compared(jump(frozen, y, u, LOW))
    value = (one - other).square().mean(1)
    level = torch.exp(-1.2 + 1.2 * torch.special.ndtri(U[:, 1]))
    square = column(level * level + 0.25)
    told = 0.25 * level.clamp_min(0.002).log()
    raw = net((X0 + column(level) * Z) / square.sqrt(), told, told)
    clean = 0.25 / square * (X0 + column(level) * Z) + column(0.5 * level) / square.sqrt() * raw
    denoised = (clean - X0).square().mean(1) * (level**2 + 0.25) / (0.5 * level) ** 2
    factor = balance
    model = TrajectoryFunction(small(), 0.5, 0.002)
    given = balance
    if balance == "adaptive":
        given, last = model.net.last.weight, net.net.last.weight
        sizes = [
            torch.autograd.grad(term.mean(), last, retain_graph=True)[0].norm()
            for term in (value, denoised)
        ]
        factor = sizes[0] / (sizes[1] + 1e-4)
    options = {"compared_at": end, "teacher": teacher, "steps": 2, "balance": given}
    assert_same(ctm, model, value + factor * denoised, net, levels=(HIGH, LOW), **options)


def test_the_student_is_compared_through_a_model_that_stands_still() -> None:
    """The gradient through the last jump is that of its input alone; with parameters it differs."""
    net = small().eval()
    model = TrajectoryFunction(net, 0.5, 0.002)
    found = ctm(model, X0, key=SEED, step=STEP, levels=(HIGH, LOW), balance=0.0)
    (right,) = torch.autograd.grad(found.loss, net.last.bias)
    x = X0 + column(HIGH) * Z
    root = HIGH ** (1 / 7) + U[:, 0] * (LOW ** (1 / 7) - HIGH ** (1 / 7))
    u = torch.maximum(root**7, LOW)
    start = torch.where(LOW > 0, LOW, 1.0)

    def compared(state: Tensor) -> Tensor:
        made = jump(net, state, start, 0 * start)
        return torch.where(column(LOW > 0), made, state)

    other = compared(jump(net, X0 + column(u) * Z, u, LOW)).detach()
    value = (compared(jump(net, x, HIGH, LOW)) - other).square().mean()
    torch.testing.assert_close(value.detach(), found.loss.detach())
    (wrong,) = torch.autograd.grad(value, net.last.bias)
    assert (wrong - right).norm() > 1e-2 * right.norm()


def test_the_balance_is_clamped_and_checked() -> None:
    model = TrajectoryFunction(small().eval(), 0.5)
    call: dict[str, Any] = {"key": SEED, "step": STEP, "levels": (HIGH, LOW)}
    last = model.net.last.weight
    found = ctm(model, X0, balance=last, denoising_weight=lambda s: 1e-9 * s, **call)
    assert 0 < float(found.diagnostics["balance"]) <= 1e4
    huge = ctm(
        model,
        X0,
        balance=last,
        denoising_weight=lambda s: 0 * s,
        distance=lambda r: 1e6 * square_sum(r),
        **call,
    )
    assert float(huge.diagnostics["balance"]) == 1e4
    with pytest.raises(ValueError, match="balance must not be negative; got -1"):
        ctm(model, X0, balance=-1.0, **call)
    with pytest.raises(TypeError, match="balance must be a number or a parameter of the last"):
        ctm(model, X0, balance=torch.ones(3), **call)
    with pytest.raises(ValueError, match="balance must be a parameter of the model"):
        ctm(model, X0, balance=nn.Parameter(torch.ones(3)), **call)


@pytest.mark.parametrize("which", ["teacher", "target"])
def test_the_balance_is_that_of_the_samples_that_are_not_left_out(which: str) -> None:
    """One bad sample leaves itself out, and not by its ratio all of them."""
    model = TrajectoryFunction(small().eval(), 0.5)
    last, others = model.net.last.weight, [0, 1, 3, 4, 5]
    call: dict[str, Any] = {"key": SEED, "step": STEP, "levels": (HIGH, LOW), "reduction": "none"}
    call |= {"steps": 2, "teacher": exact_denoiser}
    target = TrajectoryFunction(copy.deepcopy(model.net), 0.5)

    def spoilt(x: Tensor, *times: Tensor) -> Tensor:
        made = exact_denoiser(x, *times) if which == "teacher" else target.net(x, *times)
        return torch.where(torch.arange(6)[:, None] == 2, torch.nan, made)

    value = ctm(model, X0, balance=0.0, target=target, **call).loss
    both = ctm(model, X0, balance=1.0, target=target, **call).loss
    sizes = []
    for term in (value, both - value):
        (rate,) = torch.autograd.grad(term[others].sum() / 6, last, retain_graph=True)
        sizes.append(rate.norm())
    factor = float(sizes[0] / (sizes[1] + 1e-4))
    bad = {"teacher": spoilt} if which == "teacher" else {"target": TrajectoryFunction(spoilt, 0.5)}
    given = call | {"target": target} | bad
    found = ctm(model, X0, balance=last, bad_rows="zero", **given)
    assert int(found.diagnostics["bad_rows"]) == 1 and float(found.per_sample[2]) == 0.0
    torch.testing.assert_close(float(found.diagnostics["balance"]), factor, rtol=1e-6, atol=0)
    want = (value + factor * (both - value))[others]
    torch.testing.assert_close(found.loss[others], want, rtol=1e-6, atol=0)
    weights = [*model.net.first.parameters(), *model.net.last.parameters()]
    grads = torch.autograd.grad(found.loss.sum(), weights)
    right = torch.autograd.grad(want.sum(), weights)
    torch.testing.assert_close(grads, right, rtol=1e-6, atol=1e-9)
    kept = ctm(model, X0, balance=last, bad_rows="keep", **given)
    assert kept.loss[others].isfinite().all() and kept.loss[2].isnan()


# --- times, options, bad input -------------------------------------------------------------------


def test_distributions_of_levels() -> None:
    t, s = RhoPairs(0.002, 80.0).sample(40000, 1)
    root, low, high = t ** (1 / 7), 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    assert abs(float(root.mean()) - (low + high) / 2) < 0.01
    assert abs(float((s ** (1 / 7) / root).mean()) - 0.5) < 0.01


def test_the_denoising_levels_are_those_of_their_distribution() -> None:
    """Quantiles of the same uniform number, carried over: other ones give another loss."""
    model = AverageVelocity(small().eval())
    options: dict[str, Any] = {"key": SEED, "step": STEP, "levels": (0.9, 0.4)}
    default = ctm(model, X0, **options).diagnostics["denoising"]
    same = ctm(model, X0, denoising=LogNormal(-1.2, 1.2), **options).diagnostics["denoising"]
    assert torch.equal(same, default)
    flow = ctm(model, X0, denoising=LogitNormal(), **options).diagnostics["denoising"]
    assert not torch.isclose(flow, default)

    class Named(LogitNormal):
        coordinates = "flow"

    named = ctm(model, X0, denoising=Named(), **options).diagnostics["denoising"]
    assert torch.equal(named, flow)

    class Elsewhere(LogitNormal):
        coordinates = "karras"

    other = ctm(model, X0, denoising=Elsewhere(), **options).diagnostics["denoising"]
    assert not torch.isclose(other, flow)


@pytest.mark.parametrize(
    ("denoising", "error", "text"),
    [
        (UniformTimes(), ValueError, "single levels, of one uniform number each; got UniformTimes"),
        (RhoPairs(), ValueError, "got RhoPairs"),
        (lambda u: u, TypeError, "denoising must be a Distribution of levels"),
    ],
)
def test_bad_distributions(denoising: Any, error: type[Exception], text: str) -> None:
    model = AverageVelocity(small().eval())
    with pytest.raises(error, match=text):
        ctm(model, X0, key=SEED, step=STEP, levels=(0.9, 0.4), denoising=denoising)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, o: ctm(m, X0, steps=0, teacher=exact_denoiser, **o), "steps must be at least 1"),
        (lambda m, o: ctm(m, X0, compared_at=-1.0, **o), "compared_at must not be negative"),
        (lambda m, o: ctm(m, X0, solver="rk", teacher=exact_denoiser, **o), "solver must be"),
        (lambda m, o: RhoPairs(1.0, 0.5), "sigma_min must be below sigma_max"),
    ],
)
def test_bad_input(call: Any, text: str) -> None:
    model = AverageVelocity(small().eval())
    with pytest.raises(ValueError, match=text):
        call(model, {"key": 0, "step": 0, "levels": (0.9, 0.4)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_and_sizes(dtype: torch.dtype) -> None:
    """Half precision, batches of 0 and 1; part of a batch has the same values."""
    model = TrajectoryFunction(SmallNet(2).to(dtype).eval())
    x0 = X0.to(dtype)
    whole = ctm(model, x0, key=SEED, step=STEP, teacher=exact_denoiser_like)
    assert whole.per_sample.dtype is torch.float32 and whole.per_sample.isfinite().all()
    whole.loss.backward()
    key = noise.Key(SEED, offset=2)
    part = ctm(model, x0[2:], key=key, step=STEP, teacher=exact_denoiser_like)
    close = 1e-4 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(part.per_sample, whole.per_sample[2:], rtol=close, atol=close)
    for n in (0, 1):
        few = ctm(model, x0[:n], key=SEED, step=STEP, teacher=exact_denoiser_like)
        assert few.per_sample.shape == (n,)


def exact_denoiser_like(x: Tensor, sigma: Tensor) -> Tensor:
    return exact_denoiser(x.double(), sigma).to(x.dtype)


def test_a_map_is_the_identity_at_level_0() -> None:
    """(s, t) = (0, 0) gives no NaN: f is x there, and its rates are finite."""
    model = TrajectoryFunction(small().eval(), 0.5)
    zero = torch.zeros(6, dtype=F64)
    assert torch.equal(model(X0, zero, zero), X0)
    for row in (model.start_rates(zero, zero), model.end_rates(zero, zero)):
        assert all(bool(torch.as_tensor(value).isfinite().all()) for value in row)
    assert model.skip_out(0.0, 0.0) == (1.0, 0.0)
