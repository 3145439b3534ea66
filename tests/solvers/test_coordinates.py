"""Samplers in the coordinates that a denoiser names: flow ones, those of other processes."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

import cmsolvers as cm
from cmsolvers import losses, noise
from cmsolvers.denoisers import (
    clipped,
    from_eps,
    from_flow,
    from_score,
    from_v,
    from_x0,
    guided,
)
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine import catalogue
from cmsolvers.processes.coordinates import FLOW, KARRAS, Coordinates, coordinates_of, in_karras
from cmsolvers.schedules import flow_times
from support.orders import F64, assert_order

SD, MEAN = 0.5, 0.3
DATA = Gaussian(SD, MEAN)
TRIG = cm.TrigFlow(0.4)


def column(t, x):
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def velocity(x, t):
    """E[z - x0 | x_t] of data N(MEAN, SD^2)."""
    t = column(t, x)
    alpha, centred = 1 - t, x - (1 - t) * MEAN
    return (t - alpha * SD**2) / (alpha**2 * SD**2 + t**2) * centred - MEAN


def clean(process):
    """E[x0 | x_t] in the coordinates of a process."""

    def net(x, t):
        alpha, sigma = column(process.alpha(t), x), column(process.sigma(t), x)
        gain = alpha * SD**2 / (alpha**2 * SD**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return net


FLOWING = from_flow(velocity)


def exact(process, x, t, to):
    """Where the probability-flow ODE takes x."""
    (a, s), (b, r) = ((process.alpha(u), process.sigma(u)) for u in (t, to))
    grown = math.sqrt((b * b * SD**2 + r * r) / (a * a * SD**2 + s * s))
    return b * MEAN + grown * (x - a * MEAN)


# --- which coordinates ------------------------------------------------------------------------


def test_who_names_which():
    assert coordinates_of(velocity) is KARRAS
    assert FLOWING.coordinates is FLOW
    assert from_flow(velocity, coordinates="karras").coordinates is KARRAS
    assert from_v(velocity, process=cm.VP()).coordinates is KARRAS
    assert from_v(velocity, process=cm.VP(), coordinates="process").coordinates.process == cm.VP()
    assert from_eps(velocity, process=cm.Karras(), coordinates="process").coordinates is KARRAS
    assert from_flow(velocity, process=cm.DDPM()).coordinates is KARRAS
    for wrapped in (clipped(FLOWING), guided(FLOWING, 2.0, unconditional={})):
        assert wrapped.coordinates is FLOW

    def own(x, t):
        return x

    own.coordinates = "flow"
    assert coordinates_of(own) is FLOW
    own.coordinates = cm.RectifiedFlow()
    assert coordinates_of(own) is FLOW


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: guided(FLOWING, 2.0, weak=DATA), ValueError, "weak must be in the coordinates"),
        (
            lambda: from_flow(velocity, c_noise="edm"),
            ValueError,
            "c_noise must be None or a callable of t in the coordinates of a process; got 'edm'",
        ),
        (
            lambda: from_v(velocity, process=cm.DDPM(), coordinates="process"),
            ValueError,
            "coordinates must be those of a process whose states at time 0 are clean data",
        ),
        (
            lambda: from_v(velocity, process=cm.VP(), coordinates="flow"),
            ValueError,
            "coordinates must be one of",
        ),
        (lambda: Coordinates(cm.VE()), ValueError, "sigma = 0.01 there"),
        (lambda: FLOWING(torch.ones(2, 1), 1.5), ValueError, r"t must lie in \[0, 1\].*got 1.5"),
        (
            lambda: cm.euler_pf_ode(FLOWING, torch.ones(2, 1), [80.0, 1.0]),
            ValueError,
            r"sigmas must lie in \[0, 1\] for a denoiser in flow coordinates; got 80 at index 0",
        ),
        (
            lambda: cm.rk_pf_ode(FLOWING, torch.ones(2, 1), [80.0, 1.0]),
            ValueError,
            r"sigmas must lie in \[0, 1\] for a denoiser in flow coordinates",
        ),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_what_wraps_a_denoiser_has_its_coordinates():
    for wrapper in (
        partial(FLOWING, label=3),
        torch.nn.DataParallel(FLOWING),
        torch.compile(FLOWING),
        partial(partial(FLOWING)),
    ):
        assert coordinates_of(wrapper) is FLOW

    class Mesh(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("coordinates", torch.zeros(3))

    assert coordinates_of(Mesh()) is KARRAS


def test_unknown_names():
    def own(x, t):
        return x

    own.coordinates = "euclid"
    with pytest.raises(ValueError, match="coordinates of a denoiser must be one of 'karras', 'fl"):
        cm.euler_pf_ode(own, torch.ones(2, 1), [1.0, 0.0])
    own.coordinates = 3
    with pytest.raises(TypeError, match="coordinates of a denoiser must be"):
        cm.euler_pf_ode(own, torch.ones(2, 1), [1.0, 0.0])


# --- the denoiser -----------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1e-4, 0.3, 0.999, 1.0])
def test_the_velocity_gives_the_mean(t):
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    wanted = clean(cm.RectifiedFlow())(x, torch.full((5,), t, dtype=F64))
    for level in (t, torch.full((5,), t, dtype=F64)):
        torch.testing.assert_close(FLOWING(x, level), wanted, rtol=1e-13, atol=1e-13)


def test_the_network_sees_the_state_and_the_time_themselves():
    seen = []

    def net(x, t):
        seen.append((x.clone(), t.clone()))
        return 0.0 * x

    x = torch.full((2, 3), 1.7)
    cm.euler_pf_ode(from_flow(net), x, [1.0, 0.25, 0.0])
    assert torch.equal(seen[0][0], x)
    assert [t.tolist() for _, t in seen] == [[1.0, 1.0], [0.25, 0.25]]
    cm.euler_pf_ode(from_flow(net, c_noise=lambda t: 1000 * t), x, [1.0, 0.25, 0.0])
    assert seen[-1][1].tolist() == [250.0, 250.0]


TARGETS = {
    "eps": (from_eps, lambda a, s, x0, x: (x - a * x0) / s),
    "v": (from_v, lambda a, s, x0, x: a * (x - a * x0) / s - s * x0),
    "x0": (from_x0, lambda a, s, x0, x: x0),
}


@pytest.mark.parametrize("process", [cm.VP(), cm.SubVP(), TRIG, cm.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("target", TARGETS)
def test_networks_in_the_coordinates_of_a_process(process, target):
    make, said = TARGETS[target]
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    mean = clean(process)

    def net(x, t):
        a, s = column(process.alpha(t), x), column(process.sigma(t), x)
        return said(a, s, mean(x, t), x)

    denoiser = make(net, process=process, coordinates="process")
    t = 0.6 * process.t_max
    wanted = mean(x, torch.full((5,), t, dtype=F64))
    torch.testing.assert_close(denoiser(x, t), wanted, rtol=1e-12, atol=1e-12)
    karras = make(net, process=process, coordinates="karras")
    alpha = process.alpha(t)
    torch.testing.assert_close(
        karras(x / alpha, process.sigma_hat(t)), wanted, rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(
        in_karras(denoiser)(x / alpha, process.sigma_hat(t)), wanted, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("process", [cm.VP(), TRIG], ids=repr)
def test_velocity_networks_of_other_processes(process):
    """Alpha' x0 + sigma' z with finite differences of alpha and sigma."""
    mean, e = clean(process), 1e-6

    def net(x, t):
        t = t.double()
        a, s = column(process.alpha(t), x), column(process.sigma(t), x)
        da, ds = (
            column((f(t + e) - f(t - e)) / (2 * e), x) for f in (process.alpha, process.sigma)
        )
        x0 = mean(x, t)
        return da * x0 + ds * (x - a * x0) / s

    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    denoiser = from_flow(net, process=process, coordinates="process")
    wanted = mean(x, torch.full((5,), 0.4, dtype=F64))
    torch.testing.assert_close(denoiser(x, 0.4), wanted, rtol=1e-8, atol=1e-8)


# --- ODE samplers ------------------------------------------------------------------------------


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
EVEN = (32, 64, 128, 256, 512)
LONG = (242, 482, 962, 1922)  # n = 3 k + 2 for dpm_fast
THIRDS = (122, 242, 482, 962)


def run(name, denoiser, x, levels, **options):
    declared = {o for o in ("eta",) if o in cm.__dict__[name].__signature__.parameters}
    return getattr(cm, name)(
        denoiser, x, levels, **dict.fromkeys(declared, 0.0), **OPTIONS.get(name, {}), **options
    )


def even(n, first, last, power=1):
    """Even steps, or small first ones: the Euler step of a multistep method costs no order then."""
    return first + (last - first) * torch.linspace(0, 1, n + 1, dtype=F64) ** power


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


# --- against diffusers -------------------------------------------------------------------------


class Double:
    """Torch or numpy with float64 for float32: schedulers round states and levels to float32."""

    def __init__(self, module):
        self._module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self._module, name)


def scheduler(monkeypatch, module, name, **config):
    schedulers = pytest.importorskip("diffusers.schedulers")
    made = getattr(schedulers, name)
    for library in (torch, np):
        short = "np" if library is np else "torch"
        monkeypatch.setattr(f"diffusers.schedulers.{module}.{short}", Double(library))
    return made(**config)


def stepped(found, x):
    for t in found.timesteps:
        u = velocity(x, torch.full((len(x),), float(t) / 1000, dtype=F64))
        x = found.step(u, t, x, return_dict=False)[0]
    return x


X = torch.tensor([[-1.0], [0.4], [1.3]], dtype=F64)


@pytest.mark.parametrize(
    ("config", "more", "times"),
    [
        ({}, {}, {}),
        ({"shift": 3.0}, {}, {"shift": 3.0}),
        ({"use_dynamic_shifting": True}, {"mu": 0.8}, {"mu": 0.8}),
        (
            {"use_dynamic_shifting": True, "shift_terminal": 0.02},
            {"mu": 0.7},
            {"mu": 0.7, "terminal": 0.02},
        ),
    ],
    ids=["plain", "shift 3", "dynamic", "terminal"],
)
def test_flow_match_euler(monkeypatch, config, more, times):
    found = scheduler(
        monkeypatch,
        "scheduling_flow_match_euler_discrete",
        "FlowMatchEulerDiscreteScheduler",
        **config,
    )
    n = 9
    found.set_timesteps(sigmas=np.linspace(1, 1 / n, n), **more)
    levels = flow_times(n, **times)
    torch.testing.assert_close(found.sigmas, levels, rtol=1e-13, atol=1e-14)
    got = cm.euler_pf_ode(FLOWING, X, levels)
    torch.testing.assert_close(got, stepped(found, X), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_heun(monkeypatch, shift):
    found = scheduler(
        monkeypatch,
        "scheduling_flow_match_heun_discrete",
        "FlowMatchHeunDiscreteScheduler",
        shift=shift,
    )
    found.set_timesteps(8)
    levels = torch.cat([found.sigmas[:1], found.sigmas[1:-1:2], found.sigmas[-1:]]).double()
    got = cm.heun_pf_ode(FLOWING, X, levels)
    torch.testing.assert_close(got, stepped(found, X), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "module", "name", "config"),
    [
        (
            cm.dpmpp_2m,
            "scheduling_dpmsolver_multistep",
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver++", "lower_order_final": False},
        ),
        (
            partial(cm.unipc, order=1, variant="bh2"),
            "scheduling_unipc_multistep",
            "UniPCMultistepScheduler",
            {"solver_order": 1, "solver_type": "bh2", "lower_order_final": False},
        ),
        (
            partial(cm.unipc, order=2, variant="bh1"),
            "scheduling_unipc_multistep",
            "UniPCMultistepScheduler",
            {"solver_order": 2, "solver_type": "bh1", "lower_order_final": False},
        ),
        (
            partial(cm.unipc, order=2, variant="bh2"),
            "scheduling_unipc_multistep",
            "UniPCMultistepScheduler",
            {"solver_order": 2, "solver_type": "bh2", "lower_order_final": False},
        ),
    ],
    ids=["dpmpp_2m", "unipc 1", "unipc 2 bh1", "unipc 2"],
)
def test_exponential_methods_on_flow_levels(monkeypatch, sampler, module, name, config):
    found = scheduler(
        monkeypatch,
        module,
        name,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        final_sigmas_type="zero",
        **config,
    )
    found.set_timesteps(12)
    x, levels = X, found.sigmas[:-1]  # the last step is of order 1 by another rule
    for i, t in enumerate(found.timesteps[:-1]):
        u = velocity(x, torch.full((len(x),), float(levels[i]), dtype=F64))
        x = found.step(u, t, x, return_dict=False)[0]
    torch.testing.assert_close(sampler(FLOWING, X, levels), x, rtol=1e-10, atol=1e-10)


# --- samplers with noise ----------------------------------------------------------------------

NOISY = {  # options, weak order, steps
    "euler_ancestral": ({}, 1, EVEN),
    "ddpm_ancestral": ({}, 1, EVEN),
    "ddim": ({"eta": 0.7}, 1, EVEN),
    "dpm_2_ancestral": ({}, 2, EVEN),
    "dpm_fast": ({"eta": 0.8}, 3, THIRDS),
    "dpmpp_2s_ancestral": ({}, 2, EVEN),
    "dpmpp_sde": ({}, 2, EVEN),
    "dpmpp_2m_sde": ({}, 2, EVEN),
    "dpmpp_3m_sde": ({"eta": 0.6}, 2, THIRDS),
    "restart": ({}, 2, EVEN),
    "flow_sde": ({}, 1, EVEN),
    "euler_pf_ode": ({"s_churn": 2.0}, 1, EVEN),
    "heun_pf_ode": ({"s_churn": 2.0}, 2, EVEN),
    "dpm_2": ({"s_churn": 2.0, "s_tmin": 0.2, "s_tmax": 0.8}, 2, EVEN),
}


def test_every_sampler_with_noise_is_here():
    rows = catalogue.SOLVERS.items()
    noisy = {name for name, row in rows if row.noise != "none" and row.space != "time"}
    left = noisy - set(NOISY) - {"consistency_sample", "dpm_adaptive", "cps"}
    assert not left


class OneHot:
    """Noise that makes a linear run show its exact variance: each normal has a row of its own.

    Two increments from one level are nested, as those of a Brownian path over ln t.
    """

    def __init__(self, n):
        self.rows, self.last, self.shared = iter(torch.eye(n, dtype=F64)), None, None

    def __call__(self, t, to):
        if self.last is not None and self.last[0] == t and to < self.last[1]:
            share = math.log(t / self.last[1]) / math.log(t / to)
            return math.sqrt(share) * self.shared + math.sqrt(1 - share) * next(self.rows)
        self.last, self.shared = (t, to), next(self.rows)
        return self.shared


def variance_error(name, n, first, last=0.1, **options):
    x = torch.zeros(3 * n + 1, dtype=F64)
    x[0] = math.sqrt((1 - first) ** 2 * SD**2 + first**2)
    noise = OneHot(len(x))
    next(noise.rows)
    levels = even(n, first, last)
    sampler = partial(getattr(cm, name), **NOISY[name][0])
    if name == "restart":  # as many steps in each loop as there are on its levels
        sampler = partial(sampler, restarts=[(0.2, 0.6, n // 2, 2), (0.5, 0.9, n // 2, 1)])
    centred = from_flow(lambda x, t: velocity(x + (1 - t) * MEAN, t) + MEAN)
    y = sampler(centred, x, levels, noise_sampler=noise, **options)
    return (y.square().sum() - ((1 - last) ** 2 * SD**2 + last**2)).abs()


@pytest.mark.parametrize("name", NOISY)
def test_weak_order_without_sampling_error(name):
    _, order, steps = NOISY[name]
    assert_order([variance_error(name, n, 0.95) for n in steps], order, steps)
    with pytest.raises(AssertionError, match="order"):
        assert_order([variance_error(name, n, 0.95, s_noise=1.02) for n in steps], order, steps)


@pytest.mark.parametrize("name", NOISY)
def test_the_law_from_pure_noise(name):
    """T = 1 has no finite sigma / alpha; the error of the variance falls all the same."""
    coarse, fine = (variance_error(name, n, 1.0) for n in (40, 160))
    assert fine < 0.015
    if name != "flow_sde":  # its first step has noise of size eta, however short it is
        assert fine < 0.4 * coarse


FRESH = (
    "euler_ancestral",
    "ddpm_ancestral",
    "ddim",
    "dpmpp_2s_ancestral",
    "dpmpp_2m_sde",
    "flow_sde",
    "cps",
)


@pytest.mark.parametrize("name", FRESH)
def test_a_noisy_step_is_that_of_karras_coordinates(name):
    """Ancestral, SDE and DDIM rows: the same states, scaled, whatever D is."""
    flow = cm.RectifiedFlow()
    denoiser = from_x0(clean(flow), process=flow, coordinates="process")
    times = torch.tensor([0.9, 0.6, 0.35, 0.2], dtype=F64)
    z = [noise.normal((3, 1), k, dtype=F64) for k in range(3)]
    states = []
    for model, levels, x in ((denoiser, times, X), (DATA, times / (1 - times), X / (1 - 0.9))):
        draws = iter(z)
        sampler = partial(getattr(cm, name), noise_sampler=lambda *_, d=draws: next(d))
        states.append(
            sampler(model, x, levels, trajectory=True, **NOISY.get(name, ({},))[0])[1].trajectory
        )
    scale = (1 - times).reshape(-1, 1, 1)
    torch.testing.assert_close(states[0], scale * states[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(
    ("process", "first"), [(cm.RectifiedFlow(), 1.0), (TRIG, 1.4), (cm.VP(), 1.0)], ids=repr
)
def test_dpm_adaptive(order, process, first):
    denoiser = from_x0(clean(process), process=process, coordinates="process")
    for rtol in (1e-2, 1e-4):
        got = cm.dpm_adaptive(denoiser, X, [first, 0.05], order=order, rtol=rtol, atol=0.1 * rtol)
        wanted = exact(process, X, first, 0.05)
        torch.testing.assert_close(got, wanted, rtol=3 * rtol, atol=rtol)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_dpm_adaptive_with_noise(eta):
    """Steps that depend on x make the law right to first order in them."""
    z = noise.normal((10_000, 1), 5)
    last, off = 0.02, []
    for rtol in (0.05, 1e-3):
        x = cm.dpm_adaptive(
            FLOWING, torch.cat([z, -z]), [1.0, last], eta=eta, rtol=rtol, atol=0.1 * rtol, seed=3
        )
        off.append(x.std().item() / math.hypot((1 - last) * SD, last) - 1)
        assert x.mean().item() == pytest.approx((1 - last) * MEAN, abs=0.02)
    assert max(map(abs, off)) < 0.03


def test_churn_lifts_the_ratio_of_noise_to_data():
    """Noise of a lift from 0.5 by a tenth of sigma / alpha: the state at the new level."""
    seen = []
    x = torch.zeros(4, 1, dtype=F64)
    cm.euler_pf_ode(
        FLOWING, x, [0.5, 0.25], s_churn=0.1, seed=1, callback=lambda d: seen.append(dict(d))
    )
    ratio = 1.1
    level = ratio / (1 + ratio)
    assert seen[0]["sigma"] == 0.5
    assert seen[0]["sigma_hat"] == pytest.approx(level, rel=1e-14)
    z = noise.normal((4, 1), 1, stream=noise.STEPS, dtype=F64)
    wanted = (1 - level) * math.sqrt(ratio**2 - 1) * z
    torch.testing.assert_close(seen[0]["x"], wanted, rtol=1e-6, atol=1e-7)


def test_no_step_leaves_the_times_of_a_process():
    seen = []

    def D(x, t):
        seen.append(float(t[0]))
        return 0.0 * x

    D.coordinates = cm.VP()
    cm.heun_pf_ode(D, X, torch.linspace(1, 0, 6, dtype=F64), s_churn=3.0, seed=0)
    assert max(seen) == 1.0
    with pytest.raises(ValueError, match=r"levels of all steps must lie in .*; got 1\.5"):
        cm.restart(FLOWING, X, flow_times(5), restarts=[(0.4, 1.5, 2, 1)], seed=0)


def test_levels_of_sigma_min_and_below_in_consistency_sampling():
    """They count as sigma_min, as in Karras coordinates: the same states, scaled."""
    flow = cm.RectifiedFlow()
    f = from_x0(clean(flow), process=flow, coordinates="process")
    times = torch.tensor([0.9, 0.5, 0.002, 0.001], dtype=F64)
    z = [noise.normal((3, 1), k, dtype=F64) for k in range(3)]
    found = []
    for model, levels, end, x in (
        (f, times, 0.002, X),
        (DATA, times / (1 - times), 0.002 / 0.998, X / (1 - 0.9)),
    ):
        draws = iter(z)
        sampler = partial(cm.consistency_sample, noise_sampler=lambda *_, d=draws: next(d))
        found.append(sampler(model, x, levels, sigma_min=end, trajectory=True)[1].trajectory)
    scale = (1 - torch.tensor([0.9, 0.5, 0.002, 0.002, 0.0], dtype=F64)).reshape(-1, 1, 1)
    torch.testing.assert_close(found[0], scale * found[1], rtol=1e-11, atol=1e-12)


def test_consistency_sampling_in_flow_coordinates():
    """The law of noised data between the steps."""
    f = from_x0(lambda x, t: 0.0 * x, process=cm.RectifiedFlow(), coordinates="process")
    x = noise.normal((20_000, 1), 1, dtype=F64)
    _, info = cm.consistency_sample(f, x, [1.0, 0.6], sigma_min=1e-3, seed=2, trajectory=True)
    assert info.trajectory[1].std().item() == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize("make", [from_eps, from_score])
def test_noise_alone_says_nothing_to_networks_of_noise(make):
    denoiser = make(lambda x, t: x, process=cm.RectifiedFlow(), coordinates="process")
    with pytest.raises(ValueError, match=r"t must leave some of the data .*; got 1"):
        cm.euler_pf_ode(denoiser, X, [1.0, 0.5])
    assert cm.euler_pf_ode(denoiser, X, [0.9, 0.5]).isfinite().all()


def test_adaptive_solvers_name_the_level():
    with pytest.raises(ValueError, match=r"lie in \[0, 1\] .*; got 2 at index 2"):
        cm.rk_pf_ode(FLOWING, X, [0.1, 0.5, 2.0])


def test_a_consistency_loss_takes_a_teacher_in_any_coordinates():
    x0 = 0.3 * noise.normal((4, 3), 1)
    f = cm.ConsistencyFunction(lambda x, c: 0.1 * x)
    found = [
        losses.consistency_distillation(f, None, teacher, x0, 0.9, 0.7, seed=0, draw=0)
        for teacher in (FLOWING, from_flow(velocity, coordinates="karras"), DATA)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=1e-6)
    for student, target in ((FLOWING, None), (f, FLOWING)):
        with pytest.raises(ValueError, match="must be in Karras coordinates; got one in flow coor"):
            losses.consistency_training(student, target, x0, 0.9, 0.7, seed=0, draw=0)


# --- around samplers ---------------------------------------------------------------------------


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


def test_networks_in_half_precision_see_exact_times():
    seen = []

    def net(x, t):
        seen.append(t[0].item())
        return velocity(x.float(), t).to(x.dtype)

    cm.heun_pf_ode(from_flow(net), torch.ones(2, 1).bfloat16(), [0.999, 0.333, 0.0])
    assert seen == pytest.approx([0.999, 0.333, 0.333], rel=1e-7)


def test_flow_times():
    assert flow_times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow_times(1).tolist() == [1.0, 0.0]
    three = flow_times(4, shift=3.0)
    torch.testing.assert_close(
        three, torch.tensor([1.0, 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5, 0.0], dtype=F64)
    )
    torch.testing.assert_close(flow_times(4, mu=math.log(3.0)), three)
    last = flow_times(5, shift=2.0, terminal=0.02, append_zero=False)
    assert last[0] == 1.0 and last[-1] == 0.02
    gaps, plain = 1 - last, 1 - flow_times(5, shift=2.0, append_zero=False)
    torch.testing.assert_close(gaps / gaps[-1], plain / plain[-1])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: flow_times(0), "n must be"),
        (lambda: flow_times(4, shift=0.0), "shift must be positive"),
        (lambda: flow_times(4, shift=2.0, mu=1.0), "shift must be left out where mu is given"),
        (lambda: flow_times(4, mu=1e9), "mu must"),
        (lambda: flow_times(4, terminal=1.0), "terminal must be below the first time"),
        (lambda: flow_times(1, terminal=0.1), "terminal must be left out for one time"),
    ],
)
def test_what_flow_times_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()


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
