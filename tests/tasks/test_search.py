"""Greedy search for levels: optima that are known, and the sampler that it stands for."""

import math

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import ConsistencyFunction
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.tasks.search import greedy_sigmas

F64 = torch.float64
N, END, TOP = 4000, 0.002, 80.0


def latent(n=N, dtype=F64):
    return TOP * noise.normal((n, 1), 1, dtype=dtype)


def shows_its_level(x, sigma):
    """A model whose output shows the level of its call."""
    return sigma.reshape(-1, 1).expand_as(x).clone()


@pytest.mark.parametrize("wanted", [0.003, 0.07, 1.0, 40.0])
def test_unimodal_metric(wanted):
    """The optimum in ln sigma is within the interval that is left: ln(80 / 0.002) (2/3)^k."""
    found = greedy_sigmas(
        shows_its_level,
        latent(4),
        lambda s: abs(math.log(s[0, 0]) - math.log(wanted)),
        2,
        iterations=30,
    )
    assert found.sigmas[0] == TOP
    left = math.log(TOP / END) * (2 / 3) ** 30
    assert abs(math.log(found.sigmas[1]) - math.log(wanted)) < left
    assert found.evaluations == 61
    assert found.metrics[1] == abs(math.log(found.sigmas[1]) - math.log(wanted))


def test_levels_never_rise():
    """The best level is taken once; the next, which would be the same again, comes from below."""
    found = greedy_sigmas(
        shows_its_level, latent(4), lambda s: abs(s[0, 0] - 5.0), 3, iterations=25
    )
    assert found.sigmas[1] == pytest.approx(5.0, rel=1e-3)
    assert found.sigmas[2] <= found.sigmas[1]
    assert found.sigmas[2] == pytest.approx(5.0, rel=1e-2)


DATA = Gaussian(0.5)


def bias(level):
    """An error of the mean that is least in between."""
    return 0.3 * (level / (1 + level)) ** 3 + 0.01 / level**0.5


def imperfect(x, sigma):
    return DATA.consistency(x, sigma, END) + bias(sigma.reshape(-1, 1))


def test_moment_error_of_an_imperfect_function():
    """On Gaussian data the error of the mean is known exactly, and so is the best second level.

    A level shrinks what was wrong before and adds a new error.
    """
    x = torch.cat([latent(400), -latent(400)])  # the start has no part in the mean
    z = noise.normal(x.shape, 3, stream=noise.STEPS, dtype=F64).mean().item()

    def exact(level):
        left = math.sqrt((0.25 + END**2) / (0.25 + level**2))
        return abs(left * (bias(TOP) + math.sqrt(level**2 - END**2) * z) + bias(level))

    found = greedy_sigmas(imperfect, x, lambda s: s.mean().abs(), 2, iterations=16, seed=3)
    assert found.metrics[0] == pytest.approx(bias(TOP), rel=1e-9)
    assert found.metrics[1] == pytest.approx(exact(found.sigmas[1].item()), rel=1e-9)
    grid = torch.logspace(math.log10(END), math.log10(TOP), 20001, dtype=F64).tolist()
    best = min(grid, key=exact)
    assert 0.1 < best < 5
    assert math.log(found.sigmas[1]) == pytest.approx(math.log(best), abs=0.02)
    assert found.metrics[1] < 0.7 * found.metrics[0]


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_it_samples_as_consistency_sample_does(dtype):
    """The metric of the found levels is that of the sampler with this seed, to the bit."""
    f = ConsistencyFunction(lambda x, c: (1.3 * x).sin() + 0.1 * c.reshape(-1, 1).to(x.dtype))
    x, data = latent(200, dtype), latent(200, dtype) / 160

    def metric(samples):
        a, b = samples.sort(0).values, data.sort(0).values
        return (a - b).abs().double().mean()

    found = greedy_sigmas(f, x, metric, 4, iterations=5, seed=7)
    assert (found.sigmas.diff() <= 0).all() and len(found.metrics) == 4
    for n in range(1, 5):
        samples = cm.consistency_sample(lambda x, s: f(x, s), x, found.sigmas[:n], seed=7)
        assert float(metric(samples)) == pytest.approx(found.metrics[n - 1], rel=1e-5)
    again = greedy_sigmas(f, x, metric, 4, iterations=5, seed=7)
    assert torch.equal(again.sigmas, found.sigmas) and again.metrics == found.metrics
    other = greedy_sigmas(f, x, metric, 4, iterations=5, seed=8)
    assert not torch.equal(other.sigmas, found.sigmas)
    fewer = greedy_sigmas(f, x, metric, 2, iterations=5, seed=7)
    assert torch.equal(fewer.sigmas, found.sigmas[:2])


def test_calls_of_the_model():
    calls = []

    def f(x, sigma, *, gain):
        calls.append(sigma[0].item())
        return gain * shows_its_level(x, sigma)

    x = latent(3)
    before = x.clone()
    found = greedy_sigmas(
        f, x, lambda s: s[0, 0], 3, iterations=4, extra_args={"gain": 2.0}, sigma_max=10.0
    )
    assert len(calls) == found.evaluations == 1 + 2 * 2 * 4
    assert calls[0] == 10.0 and all(END < level < 10.0 for level in calls[1:])
    assert torch.equal(x, before)
    assert greedy_sigmas(shows_its_level, x, lambda s: 1.0, 1).sigmas.tolist() == [TOP]


def test_progress_shows_level_and_evaluations(capsys):
    greedy_sigmas(shows_its_level, latent(3), lambda s: s[0, 0], 2, iterations=3, progress=True)
    shown = capsys.readouterr().err
    assert "sigma" in shown and "7/7" in shown


def run(f=shows_its_level, metric=lambda s: 0.0, steps=2, x=None, **options):
    return lambda: greedy_sigmas(f, latent(3) if x is None else x, metric, steps, **options)


BAD = {
    "f": (run(f=3), TypeError, "f must be callable; got 3"),
    "x": (run(x=[1.0]), TypeError, "x must be a torch.Tensor"),
    "metric": (run(metric=None), TypeError, "metric must be callable; got None"),
    "steps": (run(steps=0), ValueError, "steps must be at least 1; got 0"),
    "steps-float": (run(steps=2.0), TypeError, "steps must be an int; got 2.0"),
    "sigma_min": (run(sigma_min=0.0), ValueError, "sigma_min must be positive; got 0"),
    "sigma_max": (
        run(sigma_max=0.001),
        ValueError,
        "sigma_min must be below sigma_max; got 0.002 and 0.001",
    ),
    "end": (
        run(f=ConsistencyFunction(lambda x, c: x), sigma_min=0.01),
        ValueError,
        "sigma_min must be that of f: pass sigma_min=0.002; got 0.01",
    ),
    "iterations": (run(iterations=0), ValueError, "iterations must be at least 1; got 0"),
    "seed": (run(seed="1"), TypeError, "seed must be an int"),
    "extra": (run(extra_args=[1]), TypeError, "extra_args must be None or a dict"),
    "progress": (run(progress=1), TypeError, "progress must be True or False; got 1"),
    "nan": (
        run(metric=lambda s: math.nan),
        ValueError,
        "metric's result must be a number; got nan",
    ),
    "text": (run(metric=lambda s: "low"), TypeError, "metric's result must be a number; got 'low'"),
    "shape": (run(f=lambda x, s: x[:1]), ValueError, "f must return the shape of x"),
}


@pytest.mark.parametrize("call, error, match", BAD.values(), ids=BAD)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
