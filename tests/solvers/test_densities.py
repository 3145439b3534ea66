"""Log densities of steps: in runs, and again for other networks from stored states."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.distributions import Normal

import cmsolvers as cm
from cmsolvers import noise, step_log_prob
from cmsolvers.denoisers import EDM, clipped, from_flow, guided
from cmsolvers.denoisers.oracles import Gaussian
from support.orders import F64
from support.waits import Waits

SD, MEAN = 0.5, 0.3
DATA = Gaussian(SD, MEAN)
SIGMAS = [20.0, 6.0, 1.5, 0.4, 0.1]
TIMES = [1.0, 0.8, 0.5, 0.2, 0.05]


def small(dtype=torch.float32, size=3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Linear(size, 16), torch.nn.SiLU(), torch.nn.Linear(16, size)
        ).to(dtype)


def edm(net):
    return EDM(lambda x, c: net(x))


def flow(net):
    return from_flow(lambda x, t: net(x))


GAUSSIAN = {
    "euler_ancestral": {},
    "ddpm_ancestral": {},
    "ddim": {"eta": 0.6},
    "dpm_2_ancestral": {},
    "dpm_fast": {"eta": 0.5},
    "dpmpp_2s_ancestral": {},
    "dpmpp_2m_sde": {},
    "dpmpp_3m_sde": {},
    "consistency_sample": {},
    "flow_sde": {},
    "cps": {},
}
MULTISTEP = ("dpmpp_2m_sde", "dpmpp_3m_sde")


def cases(left_out=()):
    for name, options in GAUSSIAN.items():
        if name in left_out:
            continue
        for make, levels in ((edm, SIGMAS), (flow, TIMES)):
            sampler = partial(getattr(cm, name), **options)
            yield pytest.param(sampler, make, levels, id=f"{name}-{make.__name__}")


def start(levels, shape, dtype=torch.float32, **key):
    return levels[0] * noise.normal(shape, noise.key(1, shape[0], **key), dtype=dtype)


# --- the value -------------------------------------------------------------------------------


def ddim_mean(x, s, to):
    """Mean and deviation of DDIM's step with eta = 0.6 on the Gaussian, in Karras coordinates."""
    d = MEAN + SD**2 / (SD**2 + s**2) * (x - MEAN)
    up = 0.6 * to * math.sqrt(1 - to**2 / s**2)
    return d + math.sqrt(to**2 - up**2) * (x - d) / s, up


def flow_velocity(x, t):
    v = (1 - t) ** 2 * SD**2 + t**2
    return (t - (1 - t) * SD**2) / v * (x - (1 - t) * MEAN) - MEAN


def flow_sde_mean(x, t, to):
    """As the paper prints it, with a = 0.7."""
    dt, v = to - t, flow_velocity(x, t)
    s = 0.7 * math.sqrt(t / (1 - (to if t == 1 else t)))
    mean = x * (1 + s * s / (2 * t) * dt) + v * (1 + s * s * (1 - t) / (2 * t)) * dt
    return mean, s * math.sqrt(-dt)


def cps_mean(x, t, to):
    """As the paper prints it, with a = 0.7."""
    v = flow_velocity(x, t)
    x0, x1 = x - t * v, x + (1 - t) * v
    std = to * math.sin(0.7 * math.pi / 2)
    return (1 - to) * x0 + math.sqrt(to**2 - std**2) * x1, std


FLOWING = from_flow(lambda x, t: flow_velocity(x, t[0].item()))
CLOSED = {
    "ddim": (partial(cm.ddim, eta=0.6), DATA, SIGMAS, ddim_mean),
    "flow_sde": (cm.flow_sde, FLOWING, TIMES, flow_sde_mean),
    "cps": (cm.cps, FLOWING, TIMES, cps_mean),
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_closed_form_on_a_gaussian(name):
    sampler, denoiser, levels, mean_of = CLOSED[name]
    x = start(levels, (4, 2, 3), F64)
    y, info = sampler(denoiser, x, levels, seed=5, log_prob=True, trajectory=True)
    assert info.log_prob.shape == (4, 4)
    assert info.log_prob.dtype is F64
    for i, (s, to) in enumerate(itertools.pairwise(levels)):
        old, new = info.trajectory[i], info.trajectory[i + 1]
        mean, std = mean_of(old, s, to)
        wanted = Normal(mean, std).log_prob(new).sum((1, 2))
        torch.testing.assert_close(info.log_prob[i], wanted, rtol=1e-10, atol=1e-9)
        z = noise.normal(x.shape, 5, stream=noise.STEPS, draw=i, dtype=F64)
        torch.testing.assert_close(new, mean + std * z, rtol=1e-9, atol=1e-9)
        wrong = Normal(mean, 1.01 * std).log_prob(new).sum((1, 2))
        assert not torch.allclose(info.log_prob[i], wrong, rtol=1e-6)
    torch.testing.assert_close(y, info.trajectory[-1])


@pytest.mark.parametrize(("sampler", "make", "levels"), cases())
def test_every_gaussian_sampler_against_its_own_noise(sampler, make, levels):
    """Log p of the state that was drawn is that of its noise, whose weight two runs show."""
    net = make(small(F64))
    x = start(levels, (4, 3), F64)
    steps = len(levels) - 1
    z = [noise.normal(x.shape, 9, draw=i, dtype=F64) for i in range(steps)]

    def run(scale, i):
        draws = iter([*z[:i], scale * z[i], *z[i + 1 :]])
        return sampler(net, x, levels, noise_sampler=lambda *_: next(draws), stop=i + 1)

    draws = iter(z)
    _, info = sampler(net, x, levels, noise_sampler=lambda *_: next(draws), log_prob=True)
    assert (info.log_prob != 0).all(1).sum() >= (2 if sampler.func is cm.dpm_fast else 3)
    for i in range(info.steps):
        if not info.log_prob[i].any():
            continue
        w = ((run(2.0, i) - run(1.0, i)) / z[i]).mean()
        wanted = Normal(0.0, 1.0).log_prob(z[i]).sum(1) - 3 * w.log()
        torch.testing.assert_close(info.log_prob[i], wanted, rtol=1e-7, atol=1e-7)


def test_the_named_forms():
    x = start(SIGMAS, (4, 2, 3))
    runs = {
        form: cm.euler_ancestral(DATA, x, SIGMAS, seed=5, log_prob=form, trajectory=True)[1]
        for form in (True, "sum", "mean", "unnormalised")
    }
    total = runs[True].log_prob
    assert torch.equal(runs["sum"].log_prob, total)
    torch.testing.assert_close(runs["mean"].log_prob, total / 6, rtol=1e-12, atol=0)
    std = [to * math.sqrt(1 - to**2 / s**2) for s, to in itertools.pairwise(SIGMAS)]
    for i, s in enumerate(std):
        square = -2 * s * s * (total[i] + 6 * math.log(s * math.sqrt(2 * math.pi)))
        torch.testing.assert_close(
            runs["unnormalised"].log_prob[i], -square / 6, rtol=1e-6, atol=1e-9
        )
    info, last = runs["mean"], 3
    again = step_log_prob(
        cm.euler_ancestral, DATA, *info.trajectory[last:], SIGMAS, last, log_prob="mean"
    )
    assert torch.equal(again, info.log_prob[last])


@pytest.mark.parametrize("make", [edm, flow])
def test_wide_steps_have_the_bits_of_the_run(make):
    """Guided blocks of order 3 need more tensors than a launch takes: a part goes the same way."""
    levels = SIGMAS if make is edm else TIMES
    denoiser = guided(make(small()), 2.0, unconditional={})
    sampler = partial(cm.dpm_fast, denoiser, eta=0.5)
    x = start(levels, (4, 3))
    whole, info = sampler(x, levels, seed=5, log_prob=True, trajectory=True)
    for i in range(info.steps):
        if info.log_prob[i].any():
            states = info.trajectory[i : i + 2]
            again = step_log_prob(cm.dpm_fast, denoiser, *states, levels, i, eta=0.5)
            assert torch.equal(again, info.log_prob[i])
    half, _ = sampler(x, levels, seed=5, log_prob=True, stop=1)
    assert torch.equal(sampler(half, levels, seed=5, log_prob=True, start=1)[0], whole)


def test_a_part_of_the_last_step_alone_has_zeros():
    x, levels = start(SIGMAS, (4, 2)), [*SIGMAS, 0.0]
    _, info = cm.ddpm_ancestral(DATA, x, levels, seed=5, log_prob=True, start=4)
    assert info.log_prob.tolist() == [[0.0] * 4]
    _, empty = cm.ddpm_ancestral(DATA, x[:, :0], levels, seed=5, log_prob="mean")
    assert not empty.log_prob.any()


def test_a_step_without_noise_has_none():
    x = start(SIGMAS, (4, 2))
    y, info = cm.ddpm_ancestral(DATA, x, [*SIGMAS, 0.0], seed=5, log_prob=True)
    assert info.log_prob.shape == (5, 4)
    assert not info.log_prob[-1].any()
    assert info.log_prob[:-1].all()
    assert torch.equal(y, cm.ddpm_ancestral(DATA, x, [*SIGMAS, 0.0], seed=5))


# --- again, from stored states ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("sampler", "make", "levels"), cases(left_out=MULTISTEP))
def test_the_same_network_has_the_same_density(sampler, make, levels, dtype):
    """To the bit, for 3,072 elements: the ratio is 1."""
    size = 3072
    denoiser = make(small(dtype, size))
    x = start(levels, (3, size), dtype)
    _, info = sampler(denoiser, x, levels, seed=5, log_prob=True, trajectory=True)
    noisy = [i for i in range(info.steps) if info.log_prob[i].any()]
    assert len(noisy) >= 2
    for i in noisy:
        again = step_log_prob(sampler, denoiser, *info.trajectory[i : i + 2], levels, i)
        assert torch.equal(again, info.log_prob[i])


def test_states_beside_densities_keep_the_precision_of_the_run():
    net = small(torch.bfloat16)
    x = start(SIGMAS, (3, 3), torch.bfloat16)
    y, info = cm.euler_ancestral(edm(net), x, SIGMAS, seed=5, log_prob=True, trajectory=True)
    assert (y.dtype, info.trajectory.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(info.trajectory[-1].bfloat16(), y)
    z = noise.normal(x.shape, 5, stream=noise.STEPS, draw=1)
    std = SIGMAS[2] * math.sqrt(1 - (SIGMAS[2] / SIGMAS[1]) ** 2)
    wanted = Normal(0.0, 1.0).log_prob(z).sum(1) - 3 * math.log(std)
    torch.testing.assert_close(info.log_prob[1], wanted.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_samplers_need_their_history(name):
    sampler, denoiser = getattr(cm, name), edm(small())
    x = start(SIGMAS, (4, 3))
    _, info = sampler(denoiser, x, SIGMAS, seed=5, log_prob=True, trajectory=True)
    for i in range(1, 4):
        states = info.trajectory[i], info.trajectory[i + 1]
        _, before = sampler(denoiser, x, SIGMAS, seed=5, stop=i, return_info=True)
        assert len(before.history) == min(i, int(name[6]) - 1)
        again = step_log_prob(sampler, denoiser, *states, SIGMAS, i, history=before.history)
        torch.testing.assert_close(again, info.log_prob[i], rtol=1e-5, atol=2e-5)
        d = denoiser(info.trajectory[i - 1], torch.full((4,), SIGMAS[i - 1]))
        torch.testing.assert_close(before.history[0], d, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match=rf"history must hold the \d tensors that step {i}"):
            step_log_prob(sampler, denoiser, *states, SIGMAS, i)


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: clipped(d, -0.4, 0.4),
                                  lambda d: guided(d, 2.0, unconditional={})])  # fmt: skip
@pytest.mark.parametrize("make", [edm, flow])
def test_the_gradient_against_finite_differences(make, wrap):
    net = small(F64)
    denoiser, levels = wrap(make(net)), SIGMAS if make is edm else TIMES
    sampler = cm.euler_ancestral
    _, info = sampler(
        denoiser, start(levels, (4, 3), F64), levels, seed=5, log_prob=True, trajectory=True
    )
    x, y = info.trajectory[1].clone().requires_grad_(), info.trajectory[2].clone().requires_grad_()
    weight = net[0].weight

    def value(*inputs):
        return step_log_prob(sampler, denoiser, *inputs, levels, 1)

    by_x, by_y, by_w = torch.autograd.grad(value(x, y).sum(), (x, y, weight))
    e = 1e-6
    for tensor, got in ((x, by_x), (y, by_y), (weight, by_w)):
        with torch.no_grad():
            for place in ((0, 1), (2, 2)):
                kept = tensor[place].item()
                ends = []
                for side in (e, -e):
                    tensor[place] = kept + side
                    ends.append(value(x, y).sum())
                tensor[place] = kept
                found = (ends[0] - ends[1]) / (2 * e)
                torch.testing.assert_close(got[place], found, rtol=2e-5, atol=1e-6)
    assert not value(x.detach(), y.detach()).isnan().any()
    with torch.no_grad():
        assert not value(x, y).requires_grad


def test_another_network_has_another_density():
    one, other = edm(small()), edm(small())
    with torch.no_grad():
        other.net.__closure__[0].cell_contents[0].weight.mul_(1.1)
    x = start(SIGMAS, (4, 3))
    _, info = cm.euler_ancestral(one, x, SIGMAS, seed=5, log_prob=True, trajectory=True)
    again = step_log_prob(cm.euler_ancestral, other, *info.trajectory[2:4], SIGMAS, 2)
    assert (again - info.log_prob[2]).abs().min() > 1e-4


def test_batch_rank_and_order_change_nothing():
    """Noise is keyed by sample id, and no sample's density reads another sample."""

    def exact(x, s):
        return DATA(x, s)

    whole = start(SIGMAS, (6, 3))
    _, info = cm.ddpm_ancestral(
        exact, whole, SIGMAS, seed=noise.key(5, 6), log_prob=True, trajectory=True
    )
    for first, last in ((0, 2), (2, 6)):
        key = noise.key(5, last - first, offset=first)
        _, part = cm.ddpm_ancestral(exact, whole[first:last], SIGMAS, seed=key, log_prob=True)
        torch.testing.assert_close(part.log_prob, info.log_prob[:, first:last], rtol=0, atol=1e-9)
    order = torch.tensor([4, 0, 5])
    _, some = cm.ddpm_ancestral(
        exact, whole[order], SIGMAS, seed=noise.key(5, 3, ids=order), log_prob=True
    )
    torch.testing.assert_close(some.log_prob, info.log_prob[:, order], rtol=0, atol=1e-9)


def test_solvers_in_time():
    sde = cm.VP().reverse(cm.VP().score_of(DATA))
    ts = [1.0, 0.7, 0.4]
    x = noise.normal((4, 3), 1, dtype=F64)
    _, info = cm.euler_maruyama(sde, x, ts, seed=2, log_prob=True, trajectory=True)
    for i, (t, to) in enumerate(itertools.pairwise(ts)):
        old, new = info.trajectory[i], info.trajectory[i + 1]
        time = torch.full((4,), t, dtype=F64)
        g = cm.VP().diffusion(t)
        mean = old + (to - t) * sde.drift(old, time)
        wanted = Normal(mean, g * math.sqrt(t - to)).log_prob(new).sum(1)
        torch.testing.assert_close(info.log_prob[i], wanted, rtol=1e-10, atol=1e-9)
        again = step_log_prob(cm.euler_maruyama, sde, old, new, ts, i)
        assert torch.equal(again, info.log_prob[i])


def test_nothing_waits_for_the_device():
    x = start(SIGMAS, (4, 3))
    denoiser = edm(small())
    with Waits() as seen:
        _, info = cm.euler_ancestral(denoiser, x, SIGMAS, seed=5, log_prob=True, trajectory=True)
        step_log_prob(cm.euler_ancestral, denoiser, *info.trajectory[1:3], SIGMAS, 1)
    assert seen.count == 0


# --- what is refused --------------------------------------------------------------------------

INSIDE = "its steps add noise before an evaluation of the model"
NONE = "with these options no step has noise"
X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: cm.heun_pf_ode(DATA, X, SIGMAS, log_prob=True), NONE),
        (lambda: cm.heun_pf_ode(DATA, X, SIGMAS, log_prob=True, s_churn=2.0), INSIDE),
        (lambda: cm.ddim(DATA, X, SIGMAS, log_prob=True), f"for ddim here: .*{NONE}"),
        (lambda: cm.dpmpp_2m(DATA, X, SIGMAS, log_prob=True), NONE),
        (lambda: cm.dpmpp_sde(DATA, X, SIGMAS, log_prob=True, seed=0), INSIDE),
        (
            lambda: cm.restart(DATA, X, SIGMAS, log_prob=True, restarts=[(0.4, 2.0, 2, 1)]),
            INSIDE,
        ),
        (lambda: cm.ddim(DATA, X, SIGMAS, log_prob="max", eta=1.0), "log_prob must be one of"),
        (
            lambda: cm.euler_maruyama(cm.SDE(lambda x, t: -x, lambda t: 1.0), X, [0.0, 1.0],
                                      log_prob=True),
            "log_prob must be left out for euler_maruyama here: it is known for SDEs of the lib",
        ),
        (
            lambda: step_log_prob(cm.ddpm_ancestral, DATA, X, X, [2.0, 1.0, 0.0], 1),
            "i must be a step with noise; step 1 of ddpm_ancestral, from 1 to 0, has none",
        ),
        (
            lambda: step_log_prob(cm.ddpm_ancestral, DATA, X, X, SIGMAS, 4),
            "i must be at most 3; got 4",
        ),
        (
            lambda: step_log_prob(cm.ddpm_ancestral, DATA, X, X[:1], SIGMAS, 1),
            "x_next must have the shape and device of x",
        ),
        (
            lambda: step_log_prob(cm.ddpm_ancestral, DATA, X, X, SIGMAS, 1, start=1),
            "start must be left out",
        ),
        (
            lambda: step_log_prob(cm.ddpm_ancestral, DATA, X, X, SIGMAS, 1, check=True),
            "check must be left out",
        ),
        (
            lambda: step_log_prob(cm.ddpm_ancestral, DATA, X, X, SIGMAS, 1, log_prob=False),
            "log_prob must name a form; got False",
        ),
        (lambda: cm.ddim(DATA, X, SIGMAS, log_prob="", eta=1.0), "log_prob must be one of"),
        (lambda: cm.capture(cm.ddpm_ancestral, DATA, X, SIGMAS, log_prob=True), "log_prob must"),
    ],
)  # fmt: skip
def test_what_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: step_log_prob(cm.rk_pf_ode, DATA, X, X, SIGMAS, 1), "sampler must be a solver"),
        (lambda: step_log_prob(len, DATA, X, X, SIGMAS, 1), "sampler must be a solver"),
        (lambda: step_log_prob(cm.ddim, DATA, X, None, SIGMAS, 1, eta=1.0), "x_next must be"),
        (lambda: step_log_prob(cm.ddim, DATA, X, X, SIGMAS, 1.5, eta=1.0), "i must be an int"),
        (lambda: cm.ddim(DATA, X, SIGMAS, log_prob=2, eta=1.0), "log_prob must be"),
    ],
)
def test_what_is_of_the_wrong_kind(call, text):
    with pytest.raises(TypeError, match=text):
        call()
