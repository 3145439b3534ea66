"""Samplers with noise in flow coordinates: their laws, without sampling error."""

import math
from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import (
    from_flow,
    from_x0,
)
from cmsolvers.engine import catalogue
from cmsolvers.schedules import flow_times
from support.flows import (
    DATA,
    EVEN,
    FLOWING,
    MEAN,
    SD,
    THIRDS,
    TRIG,
    X,
    clean,
    even,
    exact,
    velocity,
)
from support.orders import F64, assert_order

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
    noisy = {name for name, row in rows if row.noise != "none" and row.space == "sigma"}
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


@pytest.mark.parametrize("name", FRESH[:4])
def test_levels_next_to_pure_noise(name):
    """Sigma / alpha is 1e9 there, and rounded to 1e-7."""
    sampler = partial(getattr(cm, name), **({"eta": 0.7} if name == "ddim" else {}))
    times = [1.0, 1 - 1e-9, 1 - 2e-9, 0.5, 0.0]
    got = sampler(FLOWING, noise.normal((4000, 1), 1, dtype=F64), times, seed=0)
    assert 0.1 < got.std().item() < SD


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
