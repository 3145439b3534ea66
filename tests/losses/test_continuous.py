"""Continuous-time losses: values and gradients against the published formulas in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction, noise
from cmsolvers.denoisers import EDM, from_flow
from cmsolvers.denoisers.flow_maps import AverageVelocity, TrigFlowMap
from cmsolvers.losses.recipes.align_your_flow import ayf_emd, ayf_lmd
from cmsolvers.losses.recipes.continuous import continuous_cd, continuous_ct, rcm, scd, sct
from cmsolvers.losses.tangents import (
    Clamped,
    Normalised,
    inverse_tangent,
    power_law_rate,
    unchanged,
)
from cmsolvers.losses.weights import square_sum
from support.loss_cases import SmallNet

SD = 0.5
B, D = 6, 3
X0 = torch.linspace(-1.0, 1.2, B * D, dtype=torch.float64).reshape(B, D)
ANGLES = torch.linspace(0.2, 1.4, B, dtype=torch.float64)
TIMES = torch.linspace(0.4, 0.95, B, dtype=torch.float64)
ENDS = TIMES - torch.linspace(0.05, 0.35, B, dtype=torch.float64)
KEY, STEP = 3, 5


def z() -> Tensor:
    return noise.normal((B, D), KEY, stream=noise.TRAINING, draw=STEP).double()


def col(level: Tensor) -> Tensor:
    return level[:, None]


def net(times: int, seed: int = 0) -> SmallNet:
    return SmallNet(times, seed=seed).double()


def of_sigma(x: Tensor, sigma: Tensor) -> Tensor:
    """A teacher D(x, sigma) in Karras coordinates, the same formula for all who need one."""
    return 0.1 + 0.3 * x / (1.0 + col(sigma) ** 2)


def along(f: Callable[..., Tensor], x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """df(x, t)/dt along v."""
    made: Tensor = torch.func.jvp(f, (x, t), (v, torch.ones_like(t)))[1].detach()
    return made


def trig() -> tuple[Tensor, Tensor, Tensor]:
    """x_t at ANGLES, the velocity of the pair and that of the teacher."""
    cos, sin = col(ANGLES.cos()), col(ANGLES.sin())
    x = cos * X0 + sin * SD * z()
    clean = of_sigma(x / cos, SD * ANGLES.tan())
    # x = cos D + sin (noise): what rotates by a quarter
    return x, cos * SD * z() - sin * X0, (cos * x - clean) / sin


def flow() -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """x_t at TIMES, and the teacher's velocity in flow coordinates."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x - of_sigma(x / col(1.0 - t), t / (1.0 - t))) / col(t)

    return col(1.0 - TIMES) * X0 + col(TIMES) * z(), velocity


def compare(
    loss: Any, model: nn.Module, value: Tensor, levels: Any, scale: float = 1.0, **options: Any
) -> None:
    """A recipe against per-sample values of the same parameters, gradients too."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    found = loss(model, X0, key=KEY, step=STEP, levels=levels, reduction="none", **options)
    torch.testing.assert_close(found.per_sample, value.detach(), rtol=1e-12, atol=1e-13)
    got = torch.autograd.grad(found.loss.sum(), parameters, allow_unused=True)
    assert any(g is not None and bool(g.abs().max() > 1e-3) for g in got)
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


# --- f^T sg(df/dsigma) ---------------------------------------------------------------------------


def boundary_map(raw: nn.Module, x: Tensor, sigma: Tensor, least: float = 0.002) -> Tensor:
    """The consistency model's f, as in its paper."""
    s = col(sigma)
    f = raw(x / (s**2 + SD**2).sqrt(), 0.25 * sigma.log())
    return SD**2 / ((s - least) ** 2 + SD**2) * x + (s - least) * SD / (s**2 + SD**2).sqrt() * f


SIGMAS = torch.tensor([0.002, 0.05, 0.3, 1.0, 6.0, 60.0], dtype=torch.float64)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_continuous_consistency(distilled: bool, weighted: bool) -> None:
    raw = net(1)
    x = X0 + col(SIGMAS) * z()
    v = (x - of_sigma(x, SIGMAS)) / col(SIGMAS) if distilled else z()
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
        "flow": from_flow(lambda x, t: (x - of_sigma(x / col(1 - t), t / (1 - t))) / col(t)),
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


# --- sCM, rCM ------------------------------------------------------------------------------------


def circle_tangent(raw: nn.Module, x: Tensor, v: Tensor, r: float, kind: str = "scm") -> Tensor:
    """g, as the papers print it."""
    cos, sin = col(ANGLES.cos()), col(ANGLES.sin())
    f = raw(x / SD, ANGLES).detach()
    rate = along(lambda x, t: raw(x / SD, t), x, ANGLES, v)
    first = cos**2 if kind == "scm" else cos * (1.0 - r**2 * sin**2).sqrt()
    return -first * (SD * f - v) - r * cos * sin * (x + SD * rate)


def normalised(g: Tensor, norm: str = "l2", c: float = 0.1) -> Tensor:
    size = g.norm(dim=1, keepdim=True)
    return g / ((size if norm == "l2" else size / math.sqrt(D)) + c)


RULES = {
    "l2": (Normalised(), normalised),
    "rms": (Normalised("rms", 0.2), lambda g: normalised(g, "rms", 0.2)),
    "clamped": (Clamped(0.3), lambda g: g.clamp(-0.3, 0.3)),
    "none": (unchanged, lambda g: g),
}


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


# --- Align Your Flow -----------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [None, 20])
@pytest.mark.parametrize("rule", ["l2", "none"])
def test_eulerian_distillation(warmup: int | None, rule: str) -> None:
    raw = net(2)
    x, velocity = flow()
    v = velocity(x, TIMES)
    f = raw(x, TIMES, ENDS)
    rate = along(lambda x, t: raw(x, t, ENDS), x, TIMES, v)
    r = 0.99 if warmup is None else STEP / warmup
    g = RULES[rule][1]((f.detach() - v) + r * col(TIMES - ENDS) * rate)
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
        return x + col(ENDS - t) * raw(x, t, ENDS)

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
    reached = (x + col(ENDS - TIMES) * f).detach()
    g = (f.detach() - velocity(reached, ENDS)) + col(ENDS - TIMES) * rate
    value = (f - f.detach() + RULES[rule][1](g)).square().mean(1)
    model = AverageVelocity(raw)
    compare(ayf_lmd, model, value, (TIMES, ENDS), teacher=of_sigma, tangent=RULES[rule][0])


# --- what else may come --------------------------------------------------------------------------


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
