"""What the tolerances of the adaptive solvers say of their results, over ranges of levels."""

from __future__ import annotations

import importlib
import math
from functools import cache

import pytest
import torch
from torch import Tensor

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.engine.adaptive.control import FilterControl
from cmsolvers.solvers import adaptive_sde, dpm_adaptive, rk_pf_ode
from support.orders import F64

MODULE = importlib.import_module("cmsolvers.solvers.dpm_adaptive")
TWO = GaussianMixture([-1.0, 0.8], [0.2, 0.3], [0.5, 0.5])
DATA = {"wide": Gaussian(5.0), "usual": Gaussian(0.5), "narrow": Gaussian(0.05), "two": TWO}
RANGES = ((10.0, 0.01), (80.0, 0.002), (1000.0, 0.002))
DEFAULTS, FINE = (0.05, 0.0078), (1e-3, 1e-4)
WITHIN = {2: 3.0, 3: 1.5}


def denoise(name: str, x: Tensor, sigma: Tensor) -> Tensor:
    """Elements of a sample as data of their own, in one dimension."""
    return DATA[name](x.reshape(-1, 1), sigma.repeat_interleave(x.shape[1])).reshape(x.shape)


@cache
def problem(name: str, ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Samples of 64 elements at the first level, and where the ODE takes them."""
    spread = DATA[name].std if name != "two" else 1.0
    x = math.hypot(ends[0], spread) * noise.normal((8, 64), seed=1, dtype=F64)
    if name != "two":
        return x, DATA[name].consistency(x, *ends)
    return x, rk_pf_ode(TWO, x.reshape(-1, 1), ends, rtol=1e-10, atol=1e-12).reshape(x.shape)


def excess(name: str, ends: tuple[float, float], size: tuple[float, float], **options) -> float:
    """The largest error of a sample over atol + rtol |x|, root mean squares."""
    (rtol, atol), (x, exact) = size, problem(name, ends)
    y = dpm_adaptive(lambda a, s: denoise(name, a, s), x, ends, rtol=rtol, atol=atol, **options)
    wrong, right = ((v.square().mean(1)).sqrt() for v in (y - exact, exact))
    return (wrong / (atol + rtol * right)).max().item()


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("order", [2, 3])
def test_the_result_is_as_good_as_the_tolerances_say(order, name, ends):
    for size in (DEFAULTS, (0.01, 0.001), FINE):
        assert excess(name, ends, size, order=order) < WITHIN[order]


def test_the_defaults_are_those():
    options = MODULE.DPMSettings()
    assert (options.rtol, options.atol) == DEFAULTS and options.tolerance == "result"


@pytest.mark.parametrize("order", [2, 3])
def test_the_published_measure_loses_the_result(order):
    assert excess("usual", RANGES[2], DEFAULTS, order=order, tolerance="published") > 20


def test_one_estimate_is_blind_where_it_vanishes(monkeypatch):
    third = MODULE._third
    monkeypatch.setattr(MODULE, "_third", lambda stages: third(stages)._replace(more=()))
    assert excess("usual", RANGES[1], FINE, order=3) > 10


def test_it_is_not_bought_with_evaluations():
    """From 80, where the published measure does not fail outright, both cost about the same."""
    x, _ = problem("usual", RANGES[1])
    run = {
        kind: dpm_adaptive(DATA["usual"], x, RANGES[1], tolerance=kind, return_info=True)[1].nfe
        for kind in ("result", "published")
    }
    assert run["result"].max() <= 1.2 * run["published"].min()


@pytest.mark.parametrize("order, more", [(2, 1.15), (3, 2.0)])
def test_noise_does_not_change_the_order_of_the_control(order, more, monkeypatch):
    """From a given x the error of a step goes as h^order, noise or not (test_adaptive_orders).

    A control that takes h^1.5 for it corrects twice too much with order 3: step sizes swing, and
    more of them are rejected.
    """
    x = math.hypot(80.0, 0.5) * noise.normal((200, 1), seed=1, dtype=F64)

    def rejected() -> float:
        options = {"order": order, "eta": 1.0, "seed": 3, "rtol": 1e-3, "atol": 1e-4}
        info = dpm_adaptive(TWO, x, [80.0, 0.002], return_info=True, **options)[1]
        return info.rejected.double().mean().item()

    right = rejected()
    monkeypatch.setattr(MODULE, "FilterControl", lambda _, **parts: FilterControl(1.5, **parts))
    assert rejected() > more * right


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize(
    "method, coordinate, within",
    [
        ("dopri54", "log_sigma", 3e-5),
        ("tsit54", "log_sigma", 3e-5),
        ("bosh32", "log_sigma", 2e-4),
        ("bosh32", "sigma", 2e-4),
        ("dopri54", "sigma", 2e-4),
    ],
)
def test_runge_kutta_is_as_good_as_documented(method, coordinate, within, ends):
    for name in DATA:
        x, exact = problem(name, ends)
        y = rk_pf_ode(
            lambda a, s, name=name: denoise(name, a, s),
            x,
            ends,
            method=method,
            coordinate=coordinate,
        )
        wrong, right = ((v.square().mean(1)).sqrt() for v in (y - exact, exact))
        assert (wrong / right).max() < within


def test_the_strong_error_of_the_adaptive_sde():
    process, x = cm.VP(), noise.normal((4, 64), seed=1, dtype=F64)
    sde = process.reverse(process.score_of(Gaussian(0.5)))

    def run(rtol: float = 0.01, atol: float = 0.0078) -> Tensor:
        ends, steps = [1.0, 0.001], 100_000
        return adaptive_sde(sde, x, ends, seed=3, rtol=rtol, atol=atol, max_steps=steps)

    assert torch.equal(run(), adaptive_sde(sde, x, [1.0, 0.001], seed=3)), "the defaults"
    fine = run(1e-3, 5e-4)
    for size, fails in (((0.01, 0.0078), False), ((0.2, 0.2), True)):
        wrong, right = ((v.square().mean(1)).sqrt() for v in (run(*size) - fine, fine))
        assert bool((wrong > 0.0078 + 0.01 * right).any()) is fails
