"""Grids against their published formulas."""

import math

import pytest
import torch

import cmsolvers as cm

GRIDS = [cm.karras_sigmas, cm.exponential_sigmas, cm.polyexponential_sigmas, cm.vp_sigmas]


@pytest.mark.parametrize("make", GRIDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [1, 2, 3, 18, 1000])
def test_what_all_grids_share(make, n):
    levels = make(n)
    assert levels.dtype == torch.float64 and levels.device.type == "cpu"
    assert levels.shape == (n + 1,) and levels[-1] == 0
    assert bool((levels.diff() < 0).all())
    assert torch.equal(make(n, append_zero=False), levels[:-1])


def test_karras_formula_and_ends():
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    expected = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n)
    ]
    levels = cm.karras_sigmas(n)
    assert levels[:-1].tolist() == pytest.approx(expected, rel=1e-13)
    assert levels[0] == high and levels[-2] == low


def test_exponential_is_geometric():
    levels = cm.exponential_sigmas(10, 0.1, 10.0, append_zero=False)
    ratios = levels[1:] / levels[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 100 ** (-1 / 9)), rtol=1e-13, atol=0)
    far = cm.karras_sigmas(10, 0.1, 10.0, rho=1e6, append_zero=False)
    torch.testing.assert_close(levels, far, rtol=1e-4, atol=0)


def test_polyexponential_formula():
    levels = cm.polyexponential_sigmas(7, 0.01, 5.0, rho=2.0, append_zero=False)
    for i, level in enumerate(levels.tolist()):
        ramp = (1 - i / 6) ** 2
        expected = math.exp(ramp * (math.log(5.0) - math.log(0.01)) + math.log(0.01))
        assert level == pytest.approx(expected, rel=1e-13)
    assert torch.equal(cm.polyexponential_sigmas(5), cm.exponential_sigmas(5))


def test_vp_levels_are_those_of_the_process():
    process, levels = cm.VP(0.2, 15.0), cm.vp_sigmas(11, 0.2, 15.0, t_min=0.01)
    for i, level in enumerate(levels[:-1].tolist()):
        assert level == pytest.approx(process.sigma_hat(1 + i / 10 * (0.01 - 1)), rel=1e-13)
