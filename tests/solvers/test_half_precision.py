"""States of float16 and bfloat16: float32 inside a run, rounded once; levels not rounded at all."""

import math

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, noise
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine import catalogue

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
HALVES = pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
SIGMA = [f.name for f in catalogue.SOLVERS.values() if f.space == "sigma" and not f.adaptive]
TIME = [f.name for f in catalogue.SOLVERS.values() if f.space == "time" and not f.adaptive]


def latent(dtype, n=64):
    return (3.0 * noise.normal((n, 3), 5)).to(dtype)


@HALVES
@pytest.mark.parametrize("name", SIGMA)
@pytest.mark.parametrize("what", ["plain", "trajectory", "noise_sampler"])
def test_a_run_is_that_of_float32_around_a_model_in_half(name, dtype, what):
    """To the bit: the model sees x and levels in half precision, and nothing else is rounded."""
    seen = []

    def half(x, sigma):
        assert x.dtype is sigma.dtype is dtype
        seen.append(x)
        return (x / (1 + sigma.reshape(-1, 1) ** 2)).tanh()

    def wide(x, sigma):
        return half(x.to(dtype), sigma.to(dtype))

    x, levels = latent(dtype), cm.karras_sigmas(7, 0.1, 3.0)
    options = {"seed": 4, "trajectory": True if what == "trajectory" else None}
    if what == "noise_sampler":
        unit = noise.normal(x.shape, 9)
        options["noise_sampler"] = lambda *_: unit.to(dtype)
    sampler = catalogue.SOLVERS[name].function
    got, expected = sampler(half, x, levels, **options), sampler(wide, x.float(), levels, **options)
    if what == "trajectory":
        assert got[1].trajectory.dtype is dtype
        assert torch.equal(got[1].trajectory, expected[1].trajectory.to(dtype))
        got, expected = got[0], expected[0]
    assert got.dtype is dtype and torch.equal(got, expected.to(dtype)) and seen


@HALVES
@pytest.mark.parametrize("name", TIME)
@pytest.mark.parametrize("kind", ["library", "own", "depends on x"])
def test_the_same_in_time(name, dtype, kind):
    def score(x, t):
        assert x.dtype is t.dtype
        return -x.tanh() * (1 + t.reshape(-1, 1))

    def in_half(f):
        return lambda x, t: f(x.to(dtype), t.to(dtype))

    if kind == "library":
        made = [cm.VP().reverse(f) for f in (score, in_half(score))]
    elif name == "predictor_corrector" or (kind == "depends on x" and name in ("sra1",)):
        return  # not for such equations
    elif kind == "own":
        made = [cm.SDE(f, lambda t: 0.3 + t) for f in (score, in_half(score))]
        made[1] = cm.SDE(made[1].drift, lambda t: 0.3 + t.to(dtype))
    else:
        size = lambda x, t: 0.1 * x.cos() + t.reshape(-1, 1)  # noqa: E731
        pairs = (score, size), (in_half(score), in_half(size))
        made = [cm.SDE(f, g, state_dependent=True) for f, g in pairs]
    x, times = latent(dtype), [1.0, 0.8, 0.5, 0.2]
    solver = catalogue.SOLVERS[name].function
    got, expected = solver(made[0], x, times, seed=2), solver(made[1], x.float(), times, seed=2)
    assert got.dtype is dtype
    if kind == "depends on x" and name == "milstein":  # the derivative is taken in half, too
        torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-2)
    else:  # what a model is shown is rounded from the sum of a step itself, not from its float32
        digit = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(got, expected.to(dtype), rtol=digit, atol=digit)


@HALVES
@pytest.mark.parametrize("steps", [18, 1000])
def test_many_steps_do_not_add_up_roundings(dtype, steps):
    """N(0, 0.5^2): within what the denoiser's own rounding does; rounding every step is not."""
    data, levels = Gaussian(0.5), cm.karras_sigmas(steps, 0.002, 80.0, append_zero=False)
    x = (80.0 * noise.normal((4000, 1), 1)).to(dtype)
    exact = data.consistency(x.to(F64), 80.0, 0.002)
    sizes = {}
    for name, run in {"ours": cm.euler_pf_ode, "rounded": rounded}.items():
        y = run(data.denoiser, x, levels).to(F64)
        sizes[name] = (y.square().mean() / exact.square().mean()).sqrt().item()
    ours = cm.euler_pf_ode(data.denoiser, x.to(F64), levels)
    best = (ours.square().mean() / exact.square().mean()).sqrt().item()  # Euler's own error
    assert abs(sizes["ours"] / best - 1.0) < 5e-3
    if steps == 1000 and dtype is BF16:
        assert abs(sizes["rounded"] / best - 1.0) > 0.1  # the control


def rounded(model, x, levels):
    """Euler's steps with a state in half precision."""
    for s, to in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        d = model(x, torch.full((len(x),), s, dtype=x.dtype))
        x = (x.float() + (to - s) / s * (x.float() - d.float())).to(x.dtype)
    return x


@HALVES
@pytest.mark.parametrize("name", ["euler_pf_ode", "heun_pf_ode", "rk_pf_ode", "dpm_adaptive"])
def test_networks_see_levels_that_are_not_rounded(name, dtype):
    """A chain's last level is its time 999, and no other one, whatever the dtype of x."""
    chain, seen = cm.DDPM(), []

    def net(x, t):
        assert x.dtype is dtype and t.dtype is F32
        seen.append(t)
        return 0.1 * x

    denoiser = denoisers.from_eps(net, process=chain)
    top, low = chain.sigma_hat(999.0), chain.sigma_hat(10.0)
    getattr(cm, name)(denoiser, latent(dtype, 4), [float(top), float(low)])
    assert seen[0].tolist() == pytest.approx([999.0] * 4, abs=1e-3)
    bad = torch.tensor(float(top)).to(dtype).item()
    assert abs(float(chain.t_of_sigma(bad)) - 999.0) > 0.01  # the control
    assert not math.isnan(bad)
