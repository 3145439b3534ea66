"""From data to latents and back: samplers of the ODE on ascending levels."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import cmsolvers as cm
from cmsolvers.denoisers import from_flow
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.engine.catalogue import SOLVERS
from support.orders import F64, FIRST, LAST, STEPS, assert_order, grid

SD, MEAN = 0.5, 0.3
DATA = Gaussian(SD, MEAN)
UPWARD = {
    "euler_pf_ode": 1,
    "heun_pf_ode": 2,
    "dpm_2": 2,
    "ddim": 1,
    "dpmpp_2m": 2,
    "lms": 2,
    "ipndm": 2,
    "deis": 2,
    "unipc": 2,
}
ORDER_2 = {"lms": 2, "ipndm": 2, "deis": 2, "unipc": 1}


def sampler_of(name):
    options = {"order": ORDER_2[name]} if name in ORDER_2 else {}
    return partial(getattr(cm, name), **options)


@pytest.mark.parametrize("name", UPWARD)
def test_order_of_the_way_up(name):
    x = torch.linspace(-1.5, 2, 8, dtype=F64)[:, None]
    wanted = DATA.consistency(x, LAST, FIRST)
    errors = [(sampler_of(name)(DATA, x, grid(n).flip(0)) - wanted).abs().mean() for n in STEPS]
    assert_order(errors, UPWARD[name])


@pytest.mark.parametrize("name", [*UPWARD, "rk_pf_ode"])
def test_there_and_back(name):
    """Data, its latent, and the data again, on a mixture and in flow coordinates."""
    data = GaussianMixture([-1.0, 0.2, 1.1], [0.3, 0.2, 0.4], [0.3, 0.3, 0.4])
    x = torch.tensor([[-1.2], [0.1], [0.9]], dtype=F64)
    up = cm.karras_sigmas(200, 0.01, 20.0, append_zero=False).flip(0)
    latent = sampler_of(name)(data, x, up)
    again = sampler_of(name)(data, latent, up.flip(0))
    assert (again - x).abs().max() < (0.05 if UPWARD.get(name) == 1 else 5e-3)
    assert latent.std() > 5


@pytest.mark.parametrize("name", [*UPWARD, "rk_pf_ode"])
def test_up_to_pure_noise_in_flow_coordinates(name):
    def velocity(x, t):
        t = t.reshape(-1, 1)
        v = (1 - t) ** 2 * SD**2 + t**2
        return (t - (1 - t) * SD**2) / v * (x - (1 - t) * MEAN) - MEAN

    x = torch.tensor([[-0.4], [0.1], [0.9]], dtype=F64)
    times = torch.cat([cm.flow_times(200, append_zero=False), torch.tensor([1e-3])]).flip(0)
    got = sampler_of(name)(from_flow(velocity), x, times)
    alpha = 1 - 1e-3
    wanted = (x - alpha * MEAN) / (alpha**2 * SD**2 + 1e-6) ** 0.5
    assert (got - wanted).abs().max() < (0.05 if UPWARD.get(name) == 1 else 3e-3)


def test_the_documented_round_trips():
    """The figures of docs/choosing.md: error of x in parts of the data's deviation."""
    data = GaussianMixture([-1.0, 0.2, 1.1], [0.3, 0.2, 0.4], [0.3, 0.3, 0.4])
    x = data.sample(2000, generator=torch.Generator().manual_seed(0))

    def error(sampler, n):
        up = cm.karras_sigmas(n + 1, append_zero=False).flip(0)
        again = sampler(data, sampler(data, x, up), up.flip(0))
        return ((again - x).square().mean().sqrt() / x.std()).item()

    text = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$", text, re.M)
    assert len(rows) == 4
    for name, *figures in rows:
        for n, figure in zip((18, 50, 200), figures, strict=True):
            assert 100 * error(sampler_of(name), n) == pytest.approx(float(figure), rel=0.1)
    assert error(cm.rk_pf_ode, 18) == pytest.approx(1.1e-4, rel=0.1)


def test_multistep_and_parts_upward():
    x = torch.tensor([[-1.2], [0.1]], dtype=F64)
    up = cm.karras_sigmas(9, 0.01, 20.0, append_zero=False).flip(0)
    half, info = cm.heun_pf_ode(DATA, x, up, stop=4, return_info=True, trajectory=True)
    assert info.levels == tuple(up[:5].tolist())
    assert torch.equal(cm.heun_pf_ode(DATA, half, up, start=4), cm.heun_pf_ode(DATA, x, up))
    assert cm.dpmpp_2m(DATA, x, up).isfinite().all()


NOISY = [
    name
    for name, row in SOLVERS.items()
    if row.space == "sigma" and name not in UPWARD and name != "rk_pf_ode"
]


@pytest.mark.parametrize("name", NOISY)
def test_samplers_with_noise_go_down_alone(name):
    with pytest.raises(ValueError, match=r"sigmas must be strictly descending; got 0\.5 after 0"):
        getattr(cm, name)(DATA, torch.ones(2, 1), [0.1, 0.5, 0.9], seed=0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: cm.heun_pf_ode(DATA, x, [0.1, 1.0], s_churn=1.0), "strictly descending"),
        (lambda x: cm.ddim(DATA, x, [0.1, 1.0], eta=0.5), "strictly descending"),
        (lambda x: cm.heun_pf_ode(DATA, x, [0.0, 1.0]), "begin above 0 where they ascend"),
        (lambda x: cm.heun_pf_ode(DATA, x, [0.1, 1.0, 0.5]), "strictly ascending or strictly desc"),
        (lambda x: cm.rk_pf_ode(DATA, x, [0.0, 1.0]), "begin above 0 where they ascend"),
        (
            lambda x: cm.heun_pf_ode(from_flow(DATA), x, [0.5, 1.5]),
            r"lie in \[0, 1\] for a denoiser in flow coordinates; got 1.5 at index 1",
        ),
    ],
)
def test_what_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call(torch.ones(2, 1))
