"""Self-distillation and terminal velocities against their papers' formulas."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import noise
from cmsolvers.denoisers import AverageVelocity, TrigFlowMap
from cmsolvers.losses import (
    GapPairs,
    LabelDropout,
    ScaledVelocity,
    UniformTimes,
    lsd,
    psd,
    square_sum,
    tvm,
)
from support.columns import column
from support.loss_cases import SmallNet
from support.loss_formulas import (
    F64,
    SEED,
    STEP,
    X0,
    Masked,
    S,
    T,
    U,
    V,
    Z,
    assert_same,
    small,
)


def rate_of_end(net: nn.Module, x: Tensor, **extra: Any) -> tuple[Tensor, Tensor]:
    """F(x, t, s) and dF/ds, both differentiable."""
    return torch.func.jvp(  # type: ignore[no-any-return]
        lambda s: net(x, T, s, **extra), (S,), (torch.ones_like(S),)
    )


# --- self-distillation ---------------------------------------------------------------------------


def lsd_by_hand(net: nn.Module, stop_gradient: str, target: nn.Module | None = None) -> Tensor:
    """The residuals of Lagrangian self-distillation."""
    x = column(1 - T) * X0 + column(T) * Z
    made, rate = rate_of_end(net, x)
    reached = x + column(S - T) * made
    if stop_gradient == "target":
        with torch.no_grad():
            own = (target or net)(reached, S, S)
    else:
        own = net(reached, S, S)
    return made + column(S - T) * rate - torch.where(column(S == T), V, own)


@pytest.mark.parametrize("stop_gradient", ["target", "none"])
def test_lsd_is_its_formula(stop_gradient: str) -> None:
    net = Masked(small())
    expected = lsd_by_hand(net, stop_gradient).square().mean(1)
    assert_same(lsd, AverageVelocity(small()), expected, net, stop_gradient=stop_gradient)


def test_the_gradients_of_both_kinds_differ() -> None:
    """Values agree, gradients do not: the option is not without effect."""
    grads = []
    for stop_gradient in ("target", "none"):
        model = AverageVelocity(small().eval())
        for recipe in (lsd, psd):
            found = recipe(
                model, X0, key=SEED, step=STEP, levels=(T, S), stop_gradient=stop_gradient
            )
            grads.append(
                (found.loss.detach(), *torch.autograd.grad(found.loss, model.net.last.bias))
            )
    for one, other in ((0, 2), (1, 3)):
        torch.testing.assert_close(grads[one][0], grads[other][0])
        assert (grads[one][1] - grads[other][1]).norm() > 1e-3 * grads[one][1].norm()


def test_lsd_with_an_average_as_target_and_a_learned_weight() -> None:
    net, ema, weigh = Masked(small()), Masked(small(seed=1)), nn.Linear(2, 1).double()
    twin = copy.deepcopy(weigh)
    value = lsd_by_hand(net, "target", ema).square().sum(1)
    w = twin(torch.stack([T, S], 1))[:, 0]
    assert_same(
        lsd,
        AverageVelocity(small()),
        (-w).exp() * value + w,
        net,
        target=AverageVelocity(small(seed=1)),
        distance=square_sum,
        weight=lambda t, s: weigh(torch.stack([t, s], 1)),
    )
    torch.testing.assert_close(weigh.weight.grad, twin.weight.grad)


def test_the_learned_weight_settles_at_the_loss() -> None:
    """d/dw (e^-w L + w) = 0 at w = ln L."""
    model = AverageVelocity(small().eval())
    value = lsd(model, X0, key=SEED, step=STEP, levels=(T, S)).per_sample
    w = value.log().requires_grad_()
    lsd(model, X0, key=SEED, step=STEP, levels=(T, S), weight=lambda t, s: w).loss.backward()
    assert w.grad is not None and w.grad.abs().max() < 1e-14


@pytest.mark.parametrize("stop_gradient", ["target", "none"])
@pytest.mark.parametrize("between", ["uniform", "midpoint"])
def test_psd_is_its_formula(between: str, stop_gradient: str) -> None:
    """u_{t->s} = (1 - c) u_{t->u} + c u_{u->s} on average velocities."""
    net = Masked(small())
    x = column(1 - T) * X0 + column(T) * Z
    share = U[:, 0] if between == "uniform" else torch.full_like(T, 0.5)
    u = T + share * (S - T)
    made = net(x, T, S)
    with torch.set_grad_enabled(stop_gradient == "none"):
        first = net(x, T, u)
        second = net(x + column(u - T) * first, u, S)
        twice = column(share) * first + column(1 - share) * second
    residual = made - torch.where(column(S == T), V, twice)
    options = {"between": between, "stop_gradient": stop_gradient}
    assert_same(psd, AverageVelocity(small()), residual.square().mean(1), net, **options)


def test_psd_of_other_maps_is_the_semigroup() -> None:
    """|f_{t->s} - f_{u->s} f_{t->u}|^2 / (s - t)^2, and the velocity where s = t."""
    f = TrigFlowMap(small().eval(), 0.5, second="end")
    found = psd(f, X0, key=SEED, step=STEP, levels=(T, S), between="midpoint").per_sample
    x = column(T.cos()) * X0 + 0.5 * column(T.sin()) * Z
    u = (T + S) / 2
    gap = torch.where(S == T, 1.0, S - T)
    away = ((f(x, T, S) - f(f(x, T, u), u, S)) / column(gap)).square().mean(1)
    moving = -column(T.sin()) * X0 + 0.5 * column(T.cos()) * Z
    same = (f.velocity(x, T) - moving).square().mean(1)
    torch.testing.assert_close(found, torch.where(S == T, same, away), rtol=1e-10, atol=1e-12)


def test_psd_keeps_its_digits_for_small_steps() -> None:
    """In float32 the states cancel before the division by s - t, else the error were 1e-3."""
    t = torch.full((6,), 0.7, dtype=F64)
    x0, wide = X0.float(), small().eval()
    narrow = copy.deepcopy(wide).float()
    for gap in (1e-2, 1e-4):
        options: dict[str, Any] = {"key": SEED, "step": STEP, "levels": (t, t - gap)}
        right = psd(AverageVelocity(wide), X0, **options).per_sample
        found = psd(AverageVelocity(narrow), x0, **options).per_sample
        torch.testing.assert_close(found.double().sqrt(), right.sqrt(), rtol=1e-3, atol=1e-5)


# --- terminal velocities -------------------------------------------------------------------------


def scaled_net() -> nn.Module:
    """A network that reads a scale of guidance and a label."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: Tensor, *times: Tensor, label: Tensor, w: Tensor) -> Tensor:
            made: Tensor = column(w.to(x.dtype)) * self.inner(x, *times, label=label)
            return made

    return Scaled()


@pytest.mark.parametrize("through", [True, False])
def test_tvm_is_its_formula(through: bool) -> None:
    net, ema = Masked(scaled_net()), Masked(copy.deepcopy(scaled_net()))
    with torch.no_grad():
        for p in ema.parameters():
            p.mul_(1.1)
    average = copy.deepcopy(ema.net)
    label, w = torch.tensor([0, 1, 2, 3, 1, 2]), torch.linspace(1.0, 2.0, 6, dtype=F64)
    extra, null = {"label": label, "w": w}, {"label": torch.full((6,), 4), "w": torch.ones(6)}
    level = torch.sigmoid(-0.4 + torch.special.ndtri(U[:, 0]))
    x, y = (column(1 - t) * X0 + column(t) * Z for t in (T, level))
    made, rate = rate_of_end(net, x, **extra)
    moving = made + column(S - T) * (rate if through else rate.detach())
    with torch.no_grad():
        aim = ema(x + column(S - T) * made, S, S, **extra)
        guided = column(w) * V + column(1 - w) * ema(y, level, level, **null)
    terminal = ((moving - aim) / column(w)).square().mean(1)
    flow = ((net(y, level, level, **extra) - guided) / column(w)).square().mean(1)
    assert_same(
        tvm,
        AverageVelocity(scaled_net()),
        torch.where(S == T, 0.0, terminal) + flow,
        net,
        target=AverageVelocity(average),
        extra_args=extra,
        guidance=ScaledVelocity("w", null),
        through=through,
    )


def test_tvm_with_the_scale_as_a_number() -> None:
    """One scale for all samples: w given as a number and as an entry agree."""
    label, null = torch.tensor([0, 1, 2, 3, 1, 2]), {"label": torch.full((6,), 4)}
    model = AverageVelocity(small().eval())
    values = []
    for guidance in (ScaledVelocity(2.0, null), ScaledVelocity("w", null), ScaledVelocity(1.0)):
        net = AverageVelocity(lambda x, t, s, label, w=None: model.net(x, t, s, label=label))
        extra = {"label": label, "w": torch.full((6,), 2.0)}
        options = {"levels": (T, S), "extra_args": extra, "guidance": guidance}
        values.append(tvm(net, X0, key=SEED, step=STEP, **options).per_sample)
    torch.testing.assert_close(values[0], values[1])
    assert not torch.allclose(values[0], values[2])
    plain = tvm(net, X0, key=SEED, step=STEP, levels=(T, S), extra_args=extra).per_sample
    torch.testing.assert_close(values[2], plain)


# --- times, options, bad input -------------------------------------------------------------------


def test_distributions_of_times() -> None:
    t, s = UniformTimes(0.75).sample(40000, 1)
    same = t == s
    assert abs(float(same.double().mean()) - 0.75) < 0.01
    assert abs(float(t[same].mean()) - 0.5) < 0.01
    assert abs(float(t[~same].mean()) - 2 / 3) < 0.01 and abs(float(s[~same].mean()) - 1 / 3) < 0.01
    t, s = GapPairs().sample(40000, 1)
    assert bool((t <= 1).all()) and bool((s < t).all()) and bool((s > 0).all())
    logit = torch.logit(t - s)
    assert abs(float(logit.mean()) + 0.8) < 0.02 and abs(float(logit.std()) - 1) < 0.02
    near = (t - s) < 0.1  # where nothing is cut off: s is logit-normal
    assert abs(float(torch.logit(s[near]).mean()) + 0.42) < 0.06


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, o: lsd(m, X0, stop_gradient="both", **o), "stop_gradient must be one of"),
        (lambda m, o: psd(m, X0, between="end", **o), "between must be one of 'uniform', 'mid"),
        (lambda m, o: psd(m, X0, weight=lambda t, s: t[:2], **o), "weight must return one number"),
        (lambda m, o: lsd(m, X0, derivative="exact", **o), 'derivative must be "jvp" or'),
        (
            lambda m, o: tvm(m, X0, guidance=ScaledVelocity("w"), **o),
            r"extra_args\['w'\] must be a",
        ),
        (lambda m, o: ScaledVelocity(-1.0), "scale must be positive; got -1"),
        (lambda m, o: lsd(TrigFlowMap(small(1)), X0, **o), "two times"),
        (lambda m, o: UniformTimes(1.5), r"equal must be in \[0, 1\]"),
        (lambda m, o: GapPairs(std=0.0), "std must be positive"),
    ],
)
def test_bad_input(call: Any, text: str) -> None:
    model = AverageVelocity(small().eval())
    with pytest.raises((TypeError, ValueError), match=text):
        call(model, {"key": 0, "step": 0, "levels": (0.9, 0.4)})


@pytest.mark.parametrize("recipe", [lsd, psd, tvm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_sizes_and_labels(recipe: Any, dtype: torch.dtype) -> None:
    """Half precision, batches of 0 and 1, dropped labels; part of a batch has the same values."""
    model = AverageVelocity(SmallNet(2).to(dtype).eval())
    x0 = X0.to(dtype)
    label = torch.tensor([0, 1, 2, 3, 1, 2])
    options = {"step": STEP, "label_dropout": LabelDropout("label", 0.5, 4)}
    whole = recipe(model, x0, key=SEED, extra_args={"label": label}, **options)
    assert whole.per_sample.dtype is torch.float32 and whole.per_sample.isfinite().all()
    whole.loss.backward()
    part = recipe(
        model, x0[2:], key=noise.Key(SEED, offset=2), extra_args={"label": label[2:]}, **options
    )
    close = 1e-5 if dtype is torch.float32 else 0.1
    torch.testing.assert_close(part.per_sample, whole.per_sample[2:], rtol=close, atol=close)
    for n in (0, 1):
        few = recipe(model, x0[:n], key=SEED, extra_args={"label": label[:n]}, **options)
        assert few.per_sample.shape == (n,)


class Parallel(nn.Module):
    """As DistributedDataParallel wraps a module: only calls of it are seen."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, list[bool]()

    def forward(self, *args: Any, **extra: Any) -> Tensor:
        self.calls.append(torch.is_grad_enabled())
        made: Tensor = self.module(*args, **extra)
        return made


@pytest.mark.parametrize("recipe", [lsd, psd, tvm])
def test_wrappers_see_every_pass_with_gradient(recipe: Any) -> None:
    """Gradients through forward mode come by the wrapper too, which synchronises them."""
    inner = AverageVelocity(small().eval())
    outer = Parallel(inner)
    call: dict[str, Any] = {"key": SEED, "step": STEP, "levels": (T, S)}
    found, right = recipe(outer, X0, **call), recipe(inner, X0, **call)
    assert outer.calls.count(True) == (2 if recipe is tvm else 1)
    weights = [p for name, p in inner.named_parameters() if "labels" not in name]
    one, other = (torch.autograd.grad(loss.loss, weights) for loss in (found, right))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("recipe", [lsd, tvm])
def test_finite_differences_come_near(recipe: Any) -> None:
    model = AverageVelocity(small().eval())
    call: dict[str, Any] = {"key": SEED, "step": STEP, "levels": (T, S)}
    grads = []
    for derivative in ("jvp", "finite_difference"):
        found = recipe(model, X0, derivative=derivative, **call)
        grads.append((found.per_sample, *torch.autograd.grad(found.loss, model.net.last.bias)))
    assert "derivative_error" in found.diagnostics
    for exact, near in zip(*grads, strict=True):
        torch.testing.assert_close(near, exact, rtol=1e-5, atol=1e-6)
