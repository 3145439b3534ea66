"""Grids against their published formulas."""

import math

import pytest
import torch
from scipy.stats import beta

import cmsolvers as cm
from cmsolvers import schedules
from cmsolvers.processes import DDPM, VP, RectifiedFlow, TrigFlow

F64 = torch.float64
GRIDS = [
    cm.karras_sigmas,
    cm.exponential_sigmas,
    cm.polyexponential_sigmas,
    cm.vp_sigmas,
    schedules.cosine_sigmas,
    schedules.flow_sigmas,
    schedules.ddpm_sigmas,
    schedules.beta_sigmas,
]


@pytest.mark.parametrize("make", GRIDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [1, 2, 3, 18, 999])
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


def test_cosine_is_even_in_the_angle():
    levels = schedules.cosine_sigmas(9, 0.01, 50.0, shift=0.5, append_zero=False)
    angles = torch.atan(levels / 0.5)
    torch.testing.assert_close(angles.diff(), angles.diff()[:1].expand(8), rtol=1e-12, atol=0)
    assert levels[0] == 50.0 and levels[-1] == 0.01
    trig = TrigFlow(0.5, 0.01, 50.0)
    times = torch.linspace(trig.t_max, trig.t_min, 9, dtype=F64)
    torch.testing.assert_close(levels, trig.sigma_hat(times), rtol=1e-13, atol=0)


def test_shift_adds_to_log_snr():
    """A shift by d / 64 lowers the log SNR of the cosine schedule by 2 ln(d / 64)."""
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    ends = [4 * math.tan(math.pi / 2 * e) for e in (0.1, 0.9)]
    levels = schedules.cosine_sigmas(5, *ends, shift=4.0, append_zero=False).flip(0)
    log_snr = -2 * torch.log(torch.tan(math.pi / 2 * t)) + 2 * math.log(64 / 256)
    torch.testing.assert_close(-2 * levels.log(), log_snr, rtol=1e-12, atol=1e-13)


def test_flow_levels_are_shifted_times_of_the_flow():
    flow = RectifiedFlow()
    for shift in (1.0, 3.0, 0.5):
        t = torch.tensor([0.999, 0.75, 0.5, 0.25], dtype=F64)
        shifted = shift * t / (1 + (shift - 1) * t)
        levels = schedules.flow_sigmas(4, shift)
        torch.testing.assert_close(levels[:-1], flow.sigma_hat(shifted), rtol=1e-12, atol=0)
        torch.testing.assert_close(schedules.shift_time(t, shift), shifted, rtol=1e-15, atol=0)
        moved = flow.sigma_hat(schedules.shift_time(0.3, shift))
        assert moved == pytest.approx(shift * flow.sigma_hat(0.3), rel=1e-13)
    assert schedules.shift_time(0, 3.0) == 0 and schedules.shift_time(1.0, 3.0) == 1


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_chain_levels_are_those_of_its_times(spacing):
    p = DDPM(schedule="scaled_linear")
    levels = schedules.ddpm_sigmas(20, p, spacing, append_zero=False)
    expected = torch.stack([p.sigmas[t] for t in p.timesteps(20, spacing)])
    torch.testing.assert_close(levels, expected, rtol=1e-13, atol=0)


def test_a_chain_without_signal_starts_at_a_finite_level():
    p = DDPM(zero_terminal_snr=True)
    levels = schedules.ddpm_sigmas(10, p)
    assert levels[0] == p.sigma_hat(p.t_max) and bool(levels.isfinite().all())
    assert p.nearest_time(levels[:-1]).tolist() == p.timesteps(10).tolist()


def test_beta_levels_are_quantiles():
    for p in (DDPM(), VP(), RectifiedFlow()):
        levels = schedules.beta_sigmas(12, p, 0.6, 0.7, append_zero=False)
        shares = (p.t_of_sigma(levels) - p.t_min) / (p.t_max - p.t_min)
        even = torch.from_numpy(beta.cdf(shares.numpy(), 0.6, 0.7))
        torch.testing.assert_close(even, torch.linspace(1, 0, 12, dtype=F64), rtol=0, atol=1e-7)
    flat = schedules.beta_sigmas(5, DDPM(), 1.0, 1.0)
    expected = DDPM().sigma_hat(torch.linspace(999, 0, 5, dtype=F64))
    torch.testing.assert_close(flat[:-1], expected, rtol=1e-11, atol=0)


NAN, INF = math.nan, math.inf
BAD = [
    (schedules.cosine_sigmas, (0,), ValueError, "n must be at least 1; got 0"),
    (schedules.cosine_sigmas, (3, 2.0, 1.0), ValueError, "sigma_min must be below"),
    (schedules.cosine_sigmas, (3, 0.1, 1.0, 0.0), ValueError, "shift must be positive; got 0"),
    (schedules.cosine_sigmas, (3, 0.1, 1.0, 1.0, 1), TypeError, "append_zero must be True or"),
    (schedules.flow_sigmas, (3.0,), TypeError, "n must be an int; got 3.0"),
    (schedules.flow_sigmas, (3, -1.0), ValueError, "shift must be positive; got -1"),
    (schedules.flow_sigmas, (3, NAN), ValueError, "shift must be a number; got nan"),
    (schedules.flow_sigmas, (3, 1.0, 1.0), ValueError, "t_max must be below 1; got 1"),
    (
        schedules.flow_sigmas,
        (1000,),
        ValueError,
        "n must be below 1 / (1 - t_max) = 1000; got 1000",
    ),
    (schedules.shift_time, (0.5, 0.0), ValueError, "shift must be positive"),
    (schedules.shift_time, (0.5, "3"), TypeError, "shift must be a number"),
    (schedules.ddpm_sigmas, (0,), ValueError, "n must be at least 1"),
    (schedules.ddpm_sigmas, (1001,), ValueError, "n must not exceed the 1000 steps"),
    (schedules.ddpm_sigmas, (3, VP()), TypeError, "process must be a DDPM; got an object of type"),
    (schedules.ddpm_sigmas, (3, DDPM(), "even"), ValueError, "spacing must be"),
    (schedules.beta_sigmas, (3, 4), TypeError, "process must be a Process; got 4"),
    (schedules.beta_sigmas, (3, VP(), 0.0), ValueError, "alpha must be positive; got 0"),
    (schedules.beta_sigmas, (3, VP(), 0.6, INF), ValueError, "beta must be finite"),
    (schedules.beta_sigmas, (True,), TypeError, "n must be an int; got True"),
    (schedules.beta_sigmas, (50, VP(), 1e-3), ValueError, "float64 can tell apart"),
]


@pytest.mark.parametrize("make, arguments, error, text", BAD)
def test_bad_input(make, arguments, error, text):
    with pytest.raises(error) as caught:
        make(*arguments)
    assert text in str(caught.value)


def test_ddpm_levels_with_leading_times_and_an_offset():
    """The levels of times 901, 801, ..., 1, and of no others."""
    chain = DDPM()
    for offset in (0, 1, 3):
        levels = schedules.ddpm_sigmas(10, chain, "leading", offset=offset)
        times = torch.arange(900 + offset, -1, -100, dtype=torch.float64)
        torch.testing.assert_close(levels[:-1], chain.sigma_hat(times), rtol=1e-14, atol=0.0)
        assert levels[-1] == 0


def test_flow_times():
    assert schedules.flow_times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert schedules.flow_times(1).tolist() == [1.0, 0.0]
    three = schedules.flow_times(4, shift=3.0)
    torch.testing.assert_close(
        three, torch.tensor([1.0, 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5, 0.0], dtype=F64)
    )
    torch.testing.assert_close(schedules.flow_times(4, mu=math.log(3.0)), three)
    last = schedules.flow_times(5, shift=2.0, terminal=0.02, append_zero=False)
    assert last[0] == 1.0 and last[-1] == 0.02
    gaps, plain = 1 - last, 1 - schedules.flow_times(5, shift=2.0, append_zero=False)
    torch.testing.assert_close(gaps / gaps[-1], plain / plain[-1])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: schedules.flow_times(0), "n must be"),
        (lambda: schedules.flow_times(4, shift=0.0), "shift must be positive"),
        (
            lambda: schedules.flow_times(4, shift=2.0, mu=1.0),
            "shift must be left out where mu is given",
        ),
        (lambda: schedules.flow_times(4, mu=1e9), "mu must"),
        (lambda: schedules.flow_times(4, terminal=1.0), "terminal must be below the first time"),
        (lambda: schedules.flow_times(1, terminal=0.1), "terminal must be left out for one time"),
    ],
)
def test_what_flow_times_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
