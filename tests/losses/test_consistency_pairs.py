"""cd, ct, ict and ect against their formulas in plain torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmsolvers import ConsistencyFunction, noise
from cmsolvers.denoisers import EDM, AverageVelocity, TrigFlowMap, from_flow
from cmsolvers.losses import cd, ct, ect, ict
from cmsolvers.losses.evaluation.states import State
from cmsolvers.losses.formulas.teacher_steps import euler, heun

F64 = torch.float64
SD, END = 0.5, 0.002
X0 = SD * noise.normal((7, 3), 1, dtype=F64)
HIGH = torch.tensor([0.05, 0.3, 1.0, 2.5, 7.0, 30.0, 80.0], dtype=F64)
LOW = HIGH * torch.tensor([0.9, 0.5, 0.99, 0.1, 0.8, 0.7, 0.95], dtype=F64)


class Net(nn.Module):
    """Smooth in x and in the level; a few parameters in float64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(3, 3, dtype=F64, generator=generator))
        self.b = nn.Parameter(torch.randn(3, dtype=F64, generator=generator))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(x @ self.w + c[:, None] * self.b)


def f_of(net: Net, x: Tensor, s: Tensor) -> Tensor:
    """The consistency function as its paper prints it."""
    s = s[:, None]
    c_skip = SD**2 / ((s - END) ** 2 + SD**2)
    c_out = (s - END) * SD / (s**2 + SD**2).sqrt()
    made = net(x / (s**2 + SD**2).sqrt(), 0.25 * s[:, 0].log())
    return c_skip * x + c_out * made


def d_of(net: Net, x: Tensor, s: Tensor) -> Tensor:
    s = s[:, None]
    made = net(x / (s**2 + SD**2).sqrt(), 0.25 * s[:, 0].log())
    return SD**2 / (s**2 + SD**2) * x + s * SD / (s**2 + SD**2).sqrt() * made


def z_of(step: int) -> Tensor:
    return noise.normal(X0.shape, 5, stream=noise.TRAINING, draw=step, dtype=F64)


def stepped(net: Net, x: Tensor, t: Tensor, s: Tensor, kind: str) -> Tensor:
    """One step of the teacher's ODE dx/dt = (x - D) / t."""
    slope_there = (x - d_of(net, x, t)) / t[:, None]
    y = x + (s - t)[:, None] * slope_there
    if kind == "euler":
        return y
    again = (y - d_of(net, y, s)) / s[:, None]
    return x + (s - t)[:, None] * 0.5 * (slope_there + again)


def compare(found: Any, expected: Tensor, net: Net) -> None:
    """Values per sample and gradients of their mean."""
    torch.testing.assert_close(found.per_sample, expected.detach(), rtol=1e-12, atol=1e-14)
    mine = torch.autograd.grad(found.loss, list(net.parameters()))
    theirs = torch.autograd.grad(expected.mean(), list(net.parameters()))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["heun", "euler"])
def test_cd_is_the_published_formula(kind: str) -> None:
    net, average, teacher = Net(0), Net(1), Net(2)
    found = cd(
        ConsistencyFunction(net),
        X0,
        key=5,
        step=9,
        teacher=EDM(teacher),
        target=ConsistencyFunction(average),
        levels=(HIGH, LOW),
        solver=kind,
    )
    x = X0 + HIGH[:, None] * z_of(9)
    with torch.no_grad():
        aim = f_of(average, stepped(teacher, x, HIGH, LOW, kind), LOW)
    compare(found, (f_of(net, x, HIGH) - aim).square().mean(1), net)


@pytest.mark.parametrize("named", [True, False])
def test_ct_and_ict_are_the_published_formulas(named: bool) -> None:
    net = Net(0)
    x, y = X0 + HIGH[:, None] * z_of(2), X0 + LOW[:, None] * z_of(2)
    with torch.no_grad():
        aim = f_of(net, y, LOW)
    square = (f_of(net, x, HIGH) - aim).square()
    given = {"key": 5, "step": 2, "levels": (HIGH, LOW)}
    if named:
        compare(ct(ConsistencyFunction(net), X0, **given), square.mean(1), net)
        return
    c = 0.00054 * math.sqrt(3)
    huber = ((square.sum(1) + c * c).sqrt() - c) / (HIGH - LOW)
    compare(ict(ConsistencyFunction(net), X0, **given), huber, net)


@pytest.mark.parametrize("distilled", [True, False])
def test_ect_has_the_norm_unsquared_and_the_clean_sample_at_zero(distilled: bool) -> None:
    net, teacher = Net(0), Net(2)
    low = LOW.clone()
    low[[1, 4]] = 0.0
    found = ect(
        ConsistencyFunction(net),
        X0,
        key=5,
        step=2,
        levels=(HIGH, low),
        teacher=EDM(teacher) if distilled else None,
    )
    x = X0 + HIGH[:, None] * z_of(2)
    y = stepped(teacher, x, HIGH, low, "euler") if distilled else X0 + low[:, None] * z_of(2)
    with torch.no_grad():
        aim = f_of(net, y, low.clamp_min(1e-3))
        aim = torch.where((low == 0)[:, None], X0, aim)
    compare(found, (f_of(net, x, HIGH) - aim).square().sum(1).sqrt() / (HIGH - low), net)


def test_wrong_formulas_are_told_apart() -> None:
    """The control of the tests above: other noise, the weight at the other level, gradients."""
    net = Net(0)
    found = ict(ConsistencyFunction(net), X0, key=5, step=2, levels=(HIGH, LOW))
    other = ict(ConsistencyFunction(net), X0, key=5, step=3, levels=(HIGH, LOW))
    assert not torch.allclose(found.per_sample, other.per_sample, rtol=1e-3)
    followed = (f_of(net, X0 + HIGH[:, None] * z_of(2), HIGH)).square().mean()
    assert not torch.allclose(
        torch.autograd.grad(followed, net.b)[0], torch.autograd.grad(found.loss, net.b)[0]
    )


# --- options -------------------------------------------------------------------------------------


def test_a_step_of_the_users_own() -> None:
    given: dict[str, Any] = {"key": 5, "step": 1, "levels": (HIGH, LOW), "teacher": EDM(Net(2))}
    f = ConsistencyFunction(Net(0))

    def mine(teacher: Any, x: State, end: Tensor) -> State:
        denoised = teacher.clean(x).tensor()
        return State(x.x + (end / x.level - 1)[:, None] * (x.x - denoised), end)

    by_hand, named = cd(f, X0, solver=mine, **given), cd(f, X0, solver=euler, **given)
    torch.testing.assert_close(by_hand.loss, named.loss, rtol=1e-12, atol=0)
    other = cd(f, X0, solver=heun, **given)
    assert not torch.allclose(other.loss, named.loss, rtol=1e-6)


@pytest.mark.parametrize("of_student", ["karras", "flow", "trigflow"])
def test_the_teacher_may_have_other_coordinates(of_student: str) -> None:
    """The same teacher in three coordinates moves the student's states alike."""
    net = Net(2)
    denoiser = EDM(net)

    def in_flow(x: Tensor, t: Tensor) -> Tensor:  # the velocity of the same denoiser
        level, scale = t / (1 - t), (1 / (1 - t))[:, None]
        return (x - denoiser(x * scale, level)) / t[:, None]

    students = {
        "karras": ConsistencyFunction(Net(0)),
        "flow": AverageVelocity(lambda x, t, s: Net(0)(x, t)),
        "trigflow": TrigFlowMap(lambda x, t: Net(0)(x, t)),
    }
    model = students[of_student]
    if of_student == "flow":
        levels = HIGH / (1 + HIGH), LOW / (1 + LOW)
    elif of_student == "trigflow":
        levels = torch.atan(HIGH / SD) * 0.99, torch.atan(LOW / SD) * 0.9
    else:
        levels = HIGH, LOW
    given = {"key": 5, "step": 1, "levels": levels}
    one = cd(model, X0, teacher=denoiser, **given)
    two = cd(model, X0, teacher=from_flow(in_flow), **given)
    torch.testing.assert_close(one.per_sample, two.per_sample, rtol=1e-9, atol=1e-13)
    other = cd(model, X0, teacher=EDM(Net(3)), **given)
    assert not torch.allclose(one.per_sample, other.per_sample, rtol=1e-3)


def test_a_function_inside_of_a_wrapper_is_called_whole() -> None:
    """As in DistributedDataParallel or torch.compile, whose hooks must run."""

    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args: Any, **more: Any) -> Tensor:
            self.calls += 1
            return self.module(*args, **more)

    net = Net(0)
    plain, wrapped = ConsistencyFunction(net), Wrapped(ConsistencyFunction(net))
    given: dict[str, Any] = {"key": 5, "step": 1, "levels": (HIGH, LOW)}
    for recipe in (ct, ict, ect):
        one, two = recipe(plain, X0, **given), recipe(wrapped, X0, **given)
        torch.testing.assert_close(one.per_sample, two.per_sample, rtol=1e-10, atol=1e-14)
        grads = [torch.autograd.grad(v.loss, net.w)[0] for v in (one, two)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)
    assert wrapped.calls == 6
    compiled = torch.compile(plain, backend="eager")
    three = ict(compiled, X0, **given)
    torch.testing.assert_close(
        three.per_sample, ict(plain, X0, **given).per_sample, rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_another_network_reads_its_own_input(sigma_data: float) -> None:
    """The student's c_in is not that of a teacher or target of another sigma_data."""
    net, teacher = Net(0), Net(2)
    given: dict[str, Any] = {"key": 5, "step": 1, "levels": (HIGH, LOW)}

    def called(x: Tensor, sigma: Tensor) -> Tensor:
        return EDM(teacher, sigma_data)(x, sigma)

    f = ConsistencyFunction(net)
    one = cd(f, X0, teacher=EDM(teacher, sigma_data), **given)
    torch.testing.assert_close(one.per_sample, cd(f, X0, teacher=called, **given).per_sample)

    def target(x: Tensor, sigma: Tensor) -> Tensor:
        return ConsistencyFunction(teacher, sigma_data)(x, sigma)

    two = ict(f, X0, target=ConsistencyFunction(teacher, sigma_data), **given)
    torch.testing.assert_close(two.per_sample, ict(f, X0, target=target, **given).per_sample)
