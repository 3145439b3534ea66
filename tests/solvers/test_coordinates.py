"""Samplers of the ODE in the coordinates that a denoiser names: flow ones, those of processes."""

from functools import partial
from itertools import pairwise

import pytest
import torch

import cmsolvers as cm
from cmsolvers import losses, noise
from cmsolvers.denoisers import (
    from_flow,
    from_x0,
)
from cmsolvers.schedules import flow_times
from support.columns import column
from support.flows import (
    DATA,
    EVEN,
    FLOWING,
    MEAN,
    SD,
    TRIG,
    X,
    clean,
    even,
    exact,
    velocity,
)
from support.orders import F64, assert_order


def test_four_steps_by_hand():
    """From z = 1 on N(0, 0.5^2) in 4 steps, by hand in t; exact is 0.5."""

    def centred(x, t):
        t = column(t, x)
        return (t - (1 - t) * SD**2) / ((1 - t) ** 2 * SD**2 + t**2) * x

    x, times = torch.ones(1, 1, dtype=F64), [1.0, 0.75, 0.5, 0.25, 0.0]

    def v(y, t):
        return centred(y, torch.full((1,), t, dtype=F64))

    euler, heun = x, x
    for t, to in pairwise(times):
        euler = euler + (to - t) * v(euler, t)
        k = v(heun, t)
        y = heun + (to - t) * k
        heun = heun + (to - t) * (k + v(y, to)) / 2 if to else y
    assert euler.item() == pytest.approx(0.341, abs=5e-4)
    assert heun.item() == pytest.approx(0.433, abs=5e-4)
    denoiser = from_flow(centred)
    assert cm.euler_pf_ode(denoiser, x, flow_times(4)).item() == pytest.approx(euler.item(), 1e-14)
    assert cm.heun_pf_ode(denoiser, x, flow_times(4)).item() == pytest.approx(heun.item(), 1e-14)


ORDERS = {
    "euler_pf_ode": 1,
    "heun_pf_ode": 2,
    "dpm_2": 2,
    "ddim": 1,
    "dpmpp_2m": 2,
    "dpm_fast": 3,
    "lms": 2,
    "ipndm": 2,
    "deis": 2,
    "euler_ancestral": 1,
    "ddpm_ancestral": 1,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_3m_sde": 3,
    "restart": 2,
    "unipc": 2,
}
OPTIONS = {"lms": {"order": 2}, "ipndm": {"order": 2}, "deis": {"order": 2}, "unipc": {"order": 1}}
LONG = (242, 482, 962, 1922)  # n = 3 k + 2 for dpm_fast


def run(name, denoiser, x, levels, **options):
    declared = {o for o in ("eta",) if o in cm.__dict__[name].__signature__.parameters}
    return getattr(cm, name)(
        denoiser, x, levels, **dict.fromkeys(declared, 0.0), **OPTIONS.get(name, {}), **options
    )


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize(
    ("process", "first", "last"),
    [(cm.RectifiedFlow(), 0.95, 0.1), (TRIG, 1.4, 0.1), (cm.VP(), 0.6, 0.1)],
    ids=["flow", "trig", "vp"],
)
def test_order_of_convergence(name, process, first, last):
    denoiser = from_x0(clean(process), process=process, coordinates="process")
    x = torch.tensor([[-1.0], [0.4], [1.3]], dtype=F64)
    steps = LONG if name in ("dpm_fast", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde") else EVEN
    wanted, errors = exact(process, x, first, last), []
    for n in steps:
        levels = even(n, first, last, power=2 if name == "dpmpp_3m_sde" else 1)
        got = run(name, denoiser, x, levels, seed=0)
        errors.append((got - wanted).abs().mean())
    assert_order(errors, ORDERS[name], steps)


@pytest.mark.parametrize("name", ORDERS)
def test_from_pure_noise_every_sampler_converges(name):
    """T = 1, where sigma / alpha is infinite, is a level like any other."""
    x = torch.tensor([[-1.0], [0.4], [1.3]], dtype=F64)
    wanted = exact(cm.RectifiedFlow(), x, 1.0, 0.0)
    errors = [
        (run(name, FLOWING, x, flow_times(n), seed=0) - wanted).abs().max() for n in (40, 80, 160)
    ]
    assert errors[2] < (7e-3 if ORDERS[name] == 1 else 8e-4)
    assert errors[2] < 0.7 * errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_of_all_orders_from_pure_noise(order, variant):
    x = torch.tensor([[-1.0], [0.4], [1.3]], dtype=F64)
    wanted = exact(cm.RectifiedFlow(), x, 1.0, 0.0)
    got = cm.unipc(FLOWING, x, flow_times(200), order=order, variant=variant)
    assert (got - wanted).abs().max() < 4e-4


@pytest.mark.parametrize("method", ["heun21", "bosh32", "dopri54", "tsit54"])
@pytest.mark.parametrize("coordinate", ["sigma", "log_sigma"])
@pytest.mark.parametrize(
    ("process", "first"), [(cm.RectifiedFlow(), 1.0), (TRIG, 1.4), (cm.VP(), 1.0)], ids=repr
)
def test_rk_pf_ode(method, coordinate, process, first):
    denoiser = from_x0(clean(process), process=process, coordinates="process")
    x = torch.tensor([[-1.0], [0.4], [1.3]], dtype=F64)
    tight = 1e-2 if method == "heun21" else 1e-4
    got = cm.rk_pf_ode(
        denoiser, x, [first, 0.05], method=method, coordinate=coordinate, rtol=1e-3 * tight,
        atol=1e-4 * tight,
    )  # fmt: skip
    torch.testing.assert_close(got, exact(process, x, first, 0.05), rtol=tight, atol=tight)


def test_a_consistency_loss_takes_a_teacher_in_any_coordinates():
    x0 = 0.3 * noise.normal((4, 3), 1)
    f = cm.ConsistencyFunction(lambda x, c: 0.1 * x)
    found = [
        losses.cd(f, x0, key=0, step=0, teacher=teacher, levels=(0.9, 0.7)).loss
        for teacher in (FLOWING, from_flow(velocity, coordinates="karras"), DATA)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="target must be in the coordinates of the model, Karras"):
        losses.ict(f, x0, key=0, step=0, target=FLOWING, levels=(0.9, 0.7))


def test_other_uses_of_a_flow_denoiser():
    x = torch.tensor([[0.7], [-0.4]], dtype=F64)
    flow = cm.RectifiedFlow()
    score = flow.score_of(FLOWING)
    t = 0.3
    variance = 0.7**2 * SD**2 + t * t
    wanted = -(x - 0.7 * MEAN) / variance
    torch.testing.assert_close(score(x, t), wanted, rtol=1e-12, atol=1e-12)
    to_flow = cm.denoisers.conversions.to_flow(FLOWING)
    level = torch.full((2,), t, dtype=F64)
    torch.testing.assert_close(to_flow(x, level), velocity(x, level), rtol=1e-12, atol=1e-12)
    from cmsolvers.tasks.likelihood import log_likelihood

    ends = [80.0, 0.01]
    found = log_likelihood(FLOWING, x, ends, rtol=1e-6, atol=1e-7).log_density
    same = log_likelihood(DATA, x, ends, rtol=1e-6, atol=1e-7).log_density
    torch.testing.assert_close(found, same, rtol=1e-4, atol=1e-4)


def test_editing_with_a_flow_denoiser():
    from cmsolvers.tasks.editing import Inpaint, edit, stroke

    y = torch.linspace(-1, 1, 16, dtype=F64).reshape(1, 1, 4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[2:] = True
    net = from_flow(velocity)
    got = edit(net, y, flow_times(6), operator=Inpaint(mask), sampler=cm.heun_pf_ode, seed=0)
    assert torch.equal(got[:, :, :2], y[:, :, :2])
    low = stroke(net, y, [1e-6, 0.0], sampler=cm.heun_pf_ode, seed=0)
    torch.testing.assert_close(low, y, rtol=1e-4, atol=1e-4)


class Own(cm.processes.Process):
    """The rectified flow as a user may write it: with tensors [] for floats."""

    t_min, t_max, prior_std = 0.0, 0.99, 1.0

    def alpha(self, t):
        return 1 - torch.as_tensor(t, dtype=F64)

    def sigma(self, t):
        return torch.as_tensor(t, dtype=F64)

    def drift_factor(self, t):
        return -1 / self.alpha(t)

    def diffusion(self, t):
        return (2 * self.sigma(t) / self.alpha(t)).sqrt()

    def t_of_sigma(self, sigma_hat):
        return torch.as_tensor(sigma_hat, dtype=F64) / (1 + sigma_hat)


@pytest.mark.parametrize("name", [*ORDERS, "rk_pf_ode", "dpm_adaptive"])
def test_a_process_of_a_user(name):
    """The same numbers as in flow coordinates, for every sampler."""
    times, denoisers = torch.linspace(0.95, 0.05, 13, dtype=F64), []
    for process in (Own(), cm.RectifiedFlow()):
        denoisers.append(from_x0(clean(process), process=process, coordinates="process"))
    if name in ORDERS:
        one, other = (run(name, denoiser, X, times, seed=0) for denoiser in denoisers)
    else:
        one, other = (getattr(cm, name)(denoiser, X, times) for denoiser in denoisers)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_networks_in_half_precision_see_exact_times():
    seen = []

    def net(x, t):
        seen.append(t[0].item())
        return velocity(x.float(), t).to(x.dtype)

    cm.heun_pf_ode(from_flow(net), torch.ones(2, 1).bfloat16(), [0.999, 0.333, 0.0])
    assert seen == pytest.approx([0.999, 0.333, 0.333], rel=1e-7)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    """Flow coordinates, parts and densities: the CPU's samples, and the bits of whole runs."""
    x, times = noise.normal((5, 3), 1), flow_times(8, 3.0)
    for name in ("heun_pf_ode", "unipc", "euler_ancestral", "dpmpp_sde", "flow_sde"):
        sampler = partial(getattr(cm, name), FLOWING, seed=2)
        whole = sampler(x.cuda(), times)
        torch.testing.assert_close(whole.cpu(), sampler(x, times), rtol=1e-4, atol=1e-5)
        half, info = sampler(x.cuda(), times, stop=3, return_info=True)
        rest = sampler(half, times, start=3, history=info.history)
        if info.history:
            torch.testing.assert_close(rest, whole, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(rest, whole)
    _, info = cm.flow_sde(FLOWING, x.cuda(), times, seed=2, log_prob=True, trajectory=True)
    again = cm.step_log_prob(cm.flow_sde, FLOWING, *info.trajectory[2:4], times, 2)
    assert torch.equal(again, info.log_prob[2])
