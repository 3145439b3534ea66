"""The chain of DDPM against the papers' formulas in plain torch, and its times and levels."""

import copy
import math
import pickle

import pytest
import torch

from cmsolvers.denoisers import from_eps
from cmsolvers.processes import DDPM
from cmsolvers.schedules import ddpm_sigmas

F64 = torch.float64
CHAINS = [
    DDPM(),
    DDPM(schedule="scaled_linear"),
    DDPM(schedule="cosine"),
    DDPM(100, "linear", 1e-3, 0.2),
    DDPM(7, [0.1, 0.2, 0.05, 0.3, 0.3, 0.9, 0.5]),
    DDPM(4, [0.1, 0.2, 0.5, 1.0]),
    DDPM(zero_terminal_snr=True),
    DDPM(schedule="scaled_linear", zero_terminal_snr=True),
]
each_chain = pytest.mark.parametrize("p", CHAINS, ids=lambda p: f"{p.num_steps}-{p.schedule}"[:20])


def published_betas(p):
    """As the papers write them, without care for rounding."""
    n = p.num_steps
    if p.schedule == "linear":
        return torch.linspace(p.beta_start or 1e-4, p.beta_end or 0.02, n, dtype=F64)
    if p.schedule == "scaled_linear":
        return torch.linspace(0.00085**0.5, 0.012**0.5, n, dtype=F64) ** 2
    if p.schedule == "cosine":
        t = torch.arange(n + 1, dtype=F64) / n
        bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    return torch.tensor(p.schedule, dtype=F64)


def published_alphas_bar(p):
    bar = torch.cumprod(1 - published_betas(p), 0)
    if not p.zero_terminal_snr:
        return bar
    root = bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@each_chain
def test_betas_and_alphas_bar(p):
    bar = published_alphas_bar(p)
    torch.testing.assert_close(p.alphas_bar, bar, rtol=1e-10, atol=1e-16)
    torch.testing.assert_close(p.sigmas, ((1 - bar) / bar).sqrt(), rtol=1e-10, atol=0)
    betas = torch.cat([1 - bar[:1], 1 - bar[1:] / bar[:-1]])
    torch.testing.assert_close(p.betas, betas, rtol=1e-9, atol=1e-14)
    if not p.zero_terminal_snr:
        torch.testing.assert_close(p.betas, published_betas(p), rtol=1e-11, atol=1e-15)
    assert p.betas.dtype == p.sigmas.dtype == F64 and p.betas.shape == (p.num_steps,)


def test_published_values():
    """Well-known ends: 0.0064 = sqrt(alphas_bar) of Ho's chain, 14.6146 of latent diffusion."""
    assert math.sqrt(DDPM().alphas_bar[-1]) == pytest.approx(0.00635, abs=5e-6)
    levels = DDPM(schedule="scaled_linear").sigmas
    assert levels[0].item() == pytest.approx(0.0292, abs=5e-5)
    assert levels[-1].item() == pytest.approx(14.6146, abs=5e-5)
    rescaled = DDPM(schedule="scaled_linear", zero_terminal_snr=True)
    assert rescaled.alphas_bar[-1] == 0
    assert rescaled.alphas_bar[0] == pytest.approx(1 - 0.00085, rel=1e-14)


@each_chain
def test_small_levels_keep_their_digits(p):
    """The first level is sqrt(beta / (1 - beta)), which 1 - alphas_bar would round."""
    beta = p.betas[0].item()
    assert p.sigmas[0].item() == pytest.approx(math.sqrt(beta / (1 - beta)), rel=4e-16)


@pytest.mark.parametrize("zero", [False, True])
def test_tiny_betas_keep_their_digits(zero):
    """Two noisings of 1e-12 and 2e-12: 1 - alphas_bar alone would have four digits."""
    p = DDPM(4, [1e-12, 2e-12, 0.1, 0.5], zero_terminal_snr=zero)
    assert p.sigmas[0].item() == pytest.approx(1e-6, rel=1e-11)
    if not zero:
        assert p.sigmas[1].item() == pytest.approx(math.sqrt(3) * 1e-6, rel=1e-11)
        return
    # 1 - alpha -> (1 - alpha) alpha_0 / (alpha_0 - alpha_T), up to what is missing to alpha_0
    end = math.sqrt(0.9 * 0.5)
    missing = (1.5e-12 - end * 0.5e-12) / (1 - end)
    assert p.sigmas[1].item() == pytest.approx(math.sqrt(2 * missing), rel=1e-11)


def finite(p):
    return int(p.sigmas.isfinite().sum())


@each_chain
def test_the_process_goes_through_the_chain(p):
    times = torch.arange(p.num_steps)
    torch.testing.assert_close(p.alpha(times), p.alphas_bar.sqrt(), rtol=1e-13, atol=0)
    torch.testing.assert_close(p.sigma(times), (1 - p.alphas_bar).sqrt(), rtol=1e-9, atol=0)
    assert torch.equal(p.sigma_hat(times), p.sigmas)
    assert [p.sigma_hat(float(t)) for t in times] == p.sigmas.tolist()
    assert torch.equal(p.t_of_sigma(p.sigmas), times.double())
    assert [p.t_of_sigma(s) for s in p.sigmas.tolist()] == times.tolist()
    assert p.alpha(-1.0) == 1 and p.sigma(-1.0) == 0 and p.t_of_sigma(0.0) == -1


@each_chain
def test_transitions_are_those_of_the_chain(p):
    """x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) z, from the marginals of the process alone."""
    for t in range(p.num_steps):
        kept = p.alpha(float(t)) / p.alpha(t - 1.0)
        added = p.sigma(float(t)) ** 2 - (kept * p.sigma(t - 1.0)) ** 2
        assert kept == pytest.approx(math.sqrt(1 - p.betas[t]), rel=1e-12, abs=1e-15)
        assert added == pytest.approx(p.betas[t].item(), rel=1e-10)


@each_chain
def test_between_the_levels(p):
    """ln sigma_hat is linear in t, as samplers on a chain have it; the ends have their own rule."""
    logs = p.sigmas[: finite(p)].log()
    for k in {0, 1, finite(p) - 2}:
        for share in (0.25, 0.5, 0.9):
            expected = math.exp(torch.lerp(logs[k], logs[k + 1], share))
            assert p.sigma_hat(k + share) == pytest.approx(expected, rel=1e-12)
            assert p.t_of_sigma(expected) == pytest.approx(k + share, rel=1e-12)
    assert p.sigma_hat(-0.25) == pytest.approx(0.75 * p.sigmas[0].item(), rel=1e-15)
    end, last = p.num_steps - 1, p.sigmas[finite(p) - 1].item()
    if finite(p) < p.num_steps:
        assert p.sigma_hat(end - 0.25) == pytest.approx(4 * last, rel=1e-12)
        assert p.t_of_sigma(math.inf) == end and p.t_max == end - 0.25
    else:
        slope = (logs[-1] - logs[-2]).item()
        assert p.sigma_hat(end + 2.5) == pytest.approx(last * math.exp(2.5 * slope), rel=1e-12)
        assert p.t_max == end


@each_chain
def test_times_and_levels_are_inverse_and_tensors_agree_with_floats(p):
    t = torch.linspace(-1, p.t_max, 997, dtype=F64)
    level = p.sigma_hat(t)
    assert bool((level.diff() > 0).all())
    torch.testing.assert_close(p.t_of_sigma(level), t, rtol=1e-12, atol=1e-12)
    for name in ("alpha", "sigma", "sigma_hat", "drift_factor", "diffusion"):
        values = [getattr(p, name)(float(s)) for s in t]
        torch.testing.assert_close(getattr(p, name)(t), torch.tensor(values, dtype=F64))
    for name in ("t_of_sigma", "network_time", "nearest_time"):
        values = [getattr(p, name)(float(s)) for s in level]
        expected = torch.tensor(values, dtype=F64)
        torch.testing.assert_close(getattr(p, name)(level), expected, rtol=1e-13, atol=1e-15)


def test_times_below_the_clean_sample_count_as_it():
    assert DDPM().sigma_hat(-3.0) == 0 and DDPM().alpha(torch.tensor(-3.0)) == 1


def test_what_a_network_is_handed():
    p = DDPM(10, "linear", 0.1, 0.5)
    levels = torch.tensor([1e-3, *p.sigmas[[0, 4, 9]], 1e4], dtype=F64)
    assert p.network_time(levels).tolist() == [0, 0, 4, 9, 9]
    assert [p.network_time(s) for s in levels.tolist()] == [0, 0, 4, 9, 9]
    middle = p.sigma_hat(torch.tensor([3.4, 3.6, 8.9], dtype=F64))
    assert p.nearest_time(middle).tolist() == [3, 4, 9]
    seen = []

    def net(x, t):
        seen.append(t.tolist())
        return x

    x, middle = torch.ones(3, 2, dtype=F64), middle.tolist()
    from_eps(net, process=p)(x, p.sigma_hat(2.5))
    from_eps(net, process=p)(x, torch.tensor([1e-3, 1.0, 1e4], dtype=F64))
    from_eps(net, process=p, c_noise=p.nearest_time)(x, middle[0])
    assert seen[0] == pytest.approx([2.5] * 3)
    assert seen[1] == [0.0, pytest.approx(p.t_of_sigma(1.0)), 9.0]
    assert seen[2] == [3.0] * 3


def test_a_level_outside_the_chain_keeps_its_own_scalings():
    """D = x - sigma eps(x / sqrt(1 + sigma^2)): only the network's time is held in the chain."""
    p = DDPM(schedule="scaled_linear")
    x = torch.tensor([[2.0]], dtype=F64)
    for level in (1e-3, 40.0):
        d = from_eps(lambda x, t: x.sin(), process=p)(x, level)
        expected = x - level * (x / math.sqrt(1 + level**2)).sin()
        torch.testing.assert_close(d, expected, rtol=1e-13, atol=0)


def test_gradient_in_the_level():
    level = torch.tensor([1e-3, 0.5, 7.0, 400.0], dtype=F64, requires_grad=True)
    for p in (DDPM(), DDPM(zero_terminal_snr=True)):
        assert torch.autograd.gradcheck(p.t_of_sigma, level, rtol=1e-5)
        t = p.t_of_sigma(level.detach()).requires_grad_()
        for name in ("alpha", "sigma", "sigma_hat"):
            assert torch.autograd.gradcheck(getattr(p, name), t, eps=1e-7, rtol=1e-4)


def table_2(spacing, steps, n):
    """Lin et al. (2024), table 2, whose times start at 1; ties of "linspace" are those from 0."""
    if spacing == "leading":
        return torch.arange(1, steps + 1, steps // n)[:n]
    if spacing == "linspace":
        return torch.linspace(0, steps - 1, n, dtype=F64).round().long() + 1
    return torch.arange(steps, 0, -steps / n, dtype=F64).round().long().flip(0)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("n", [2, 5, 10, 25, 50, 250, 1000])
def test_spacings(spacing, n):
    times = DDPM().timesteps(n, spacing)
    assert times.dtype == torch.int64
    assert times.tolist() == (table_2(spacing, 1000, n) - 1).flip(0).tolist()


def test_spacings_of_one_and_of_odd_numbers():
    p = DDPM()
    assert p.timesteps(5).tolist() == [999, 799, 599, 399, 199]
    assert p.timesteps(1).tolist() == [999] == p.timesteps(1, "linspace").tolist()
    assert p.timesteps(1, "leading").tolist() == [0]
    assert p.timesteps(3, "leading", offset=1).tolist() == [667, 334, 1]
    for spacing in ("trailing", "leading", "linspace"):
        assert bool((p.timesteps(997, spacing).diff() < 0).all())


def test_a_value_like_any_other():
    p = DDPM(3, torch.tensor([0.1, 0.2, 0.3], dtype=F64))
    assert p == DDPM(3, (0.1, 0.2, 0.3)) and hash(p) == hash(DDPM(3, [0.1, 0.2, 0.3]))
    p.sigmas.zero_()
    p.betas.zero_()
    assert p.sigmas.all() and p.betas.all()
    assert pickle.loads(pickle.dumps(p)) == p == copy.deepcopy(p)
    with pytest.raises(AttributeError):
        p.num_steps = 4
    with torch.inference_mode():
        DDPM().sigma_hat(torch.tensor(3.0))
    t = torch.tensor(3.5, dtype=F64, requires_grad=True)
    DDPM().sigma_hat(t).backward()


def test_the_usual_ends_of_a_schedule_matter():
    """A wrong schedule is seen by the tests above: cosine without its cap, linear as scaled."""
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            DDPM(schedule="scaled_linear").betas,
            torch.linspace(0.00085, 0.012, 1000, dtype=F64),
            rtol=1e-11,
            atol=1e-15,
        )
    assert DDPM(schedule="cosine").betas[-1] == 0.999


BAD = [
    ({"num_steps": 1}, ValueError, "num_steps must be at least 2; got 1"),
    ({"num_steps": 2, "zero_terminal_snr": True}, ValueError, "num_steps must be at least 3"),
    ({"num_steps": 3.0}, TypeError, "num_steps must be an int; got 3.0"),
    ({"schedule": "sigmoid"}, ValueError, "schedule must be 'linear', 'scaled_linear', 'cosine'"),
    ({"schedule": 3}, TypeError, "schedule must be"),
    ({"schedule": [0.1, 0.2]}, ValueError, "schedule must hold num_steps = 1000 betas; got 2"),
    ({"num_steps": 2, "schedule": [0.1, 1.2]}, ValueError, "got 1.2 at index 1"),
    ({"num_steps": 2, "schedule": [1.0, 0.1]}, ValueError, "got 1 at index 0"),
    ({"num_steps": 2, "schedule": [0.0, 0.1]}, ValueError, "got 0 at index 0"),
    ({"num_steps": 2, "schedule": [0.1, math.nan]}, ValueError, "schedule[1] must be a number"),
    ({"num_steps": 2, "schedule": [0.1, 1.0]}, ValueError, "got 1 finite of 2"),
    ({"schedule": [0.999] * 1000}, ValueError, "all but the last finite"),
    ({"num_steps": 2, "schedule": [0.1, 1e-20]}, ValueError, "that float64 can tell apart"),
    ({"schedule": "cosine", "beta_start": 0.1}, ValueError, "beta_start must be None"),
    (
        {"num_steps": 2, "schedule": [0.1, 0.1], "beta_end": 0.1},
        ValueError,
        "beta_end must be None",
    ),
    ({"beta_start": 0.0}, ValueError, "beta_start must be positive; got 0"),
    ({"beta_start": 0.5}, ValueError, "in order; got 0.5 and 0.02"),
    ({"beta_end": 1.0}, ValueError, "must be in (0, 1)"),
    ({"beta_end": "1"}, TypeError, "beta_end must be a number"),
    ({"zero_terminal_snr": 1}, TypeError, "zero_terminal_snr must be True or False; got 1"),
]


@pytest.mark.parametrize("arguments, error, text", BAD, ids=lambda v: str(v)[:40])
def test_bad_chains(arguments, error, text):
    with pytest.raises(error) as caught:
        DDPM(**arguments)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ((0,), ValueError, "n must be at least 1"),
        ((1001,), ValueError, "n must not exceed the 1000 steps"),
        ((3.0,), TypeError, "n must be an int"),
        (
            (3, "even"),
            ValueError,
            "spacing must be 'trailing', 'leading' or 'linspace'; got 'even'",
        ),
        ((3, "leading", -1), ValueError, "offset must be at least 0"),
        ((1000, "leading", 1), ValueError, "offset must leave times below 1000; got 1"),
        ((3, "trailing", 1), ValueError, "offset must be 0 for spacing 'trailing'; got 1"),
    ],
)
def test_bad_timesteps(arguments, error, text):
    with pytest.raises(error) as caught:
        DDPM().timesteps(*arguments)
    assert text in str(caught.value)


def test_tables_stay_on_the_host():
    """Whatever device new tensors go to by default."""
    with torch.device("meta"):
        for chain in (DDPM(10), DDPM(10, zero_terminal_snr=True)):
            values = (chain.betas, chain.sigmas, chain.alphas_bar, chain.timesteps(3))
            levels = ddpm_sigmas(3, chain)
    assert all(value.device.type == "cpu" for value in (*values, levels))
    torch.testing.assert_close(levels, ddpm_sigmas(3, chain), rtol=0, atol=0)


def test_leading_times_with_an_offset():
    assert DDPM().timesteps(10, "leading", offset=3).tolist() == list(range(903, 0, -100))
    assert DDPM().timesteps(10, "leading").tolist() == list(range(900, -1, -100))


def test_the_table_on_a_device_is_made_once_and_stays_there():
    """A copy at every call would be waited for; copies and pickles leave it where it is."""
    p, t = DDPM(), torch.tensor(3.5, dtype=F64, requires_grad=True)
    with torch.inference_mode():
        p.sigma_hat(t)
    held = p._tensors(t)
    assert all(a is b for a, b in zip(p._tensors(t), held, strict=True))
    p.sigma_hat(t).backward()  # as well where the first call had no gradients at all
    assert t.grad > 0
    for other in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p), copy.copy(p)):
        assert other == p and "_held" not in vars(other)
