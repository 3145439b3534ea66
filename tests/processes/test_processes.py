"""Processes against quadrature, finite differences and moment equations, in float64."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad, solve_ivp

import cmsolvers as cm
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.processes import DDPM, RectifiedFlow, TrigFlow

PROCESSES = [
    cm.VP(),
    cm.VP(0.5, 3.0),
    cm.VP(2.0, 2.0),
    cm.SubVP(),
    cm.SubVP(0.3, 9.0),
    cm.VE(),
    cm.VE(0.1, 3.0),
    cm.Karras(),
    RectifiedFlow(),
    TrigFlow(),
    TrigFlow(1.0, 0.01, 20.0),
    DDPM(9, "linear", 0.01, 0.5),
    DDPM(9, "scaled_linear", 0.01, 0.5),
    DDPM(9, "cosine"),
    DDPM(9, "cosine", zero_terminal_snr=True),
]
IDS = [repr(p) for p in PROCESSES]
each_process = pytest.mark.parametrize("p", PROCESSES, ids=IDS)


def grid(p, n=9):
    return [p.t_min + (p.t_max - p.t_min) * k / (n - 1) for k in range(n)]


def pieces(p):
    """From t_min to t_max in intervals where the coefficients are smooth: a chain's are its steps.

    The right end of each is a hair early, because a chain's coefficients jump there.
    """
    if not isinstance(p, DDPM):
        return list(pairwise(grid(p)))
    ends = [*range(p.num_steps - 1), p.t_max]
    return [(a, b - 1e-12) for a, b in pairwise(ends)]


def follow(rate, start, p, times=None, **how):
    """Solve y' = rate(t, y) over the pieces; y at the end of each, or at its start if reversed."""
    path, y = [], list(start)
    for a, b in times or pieces(p):
        y = solve_ivp(rate, (a, b), y, method="DOP853", rtol=1e-12, atol=1e-16, **how).y[:, -1]
        path.append((b, y.copy()))
    return path


@each_process
def test_alpha_is_the_integral_of_the_drift(p):
    for start, t in pieces(p):
        expected = p.alpha(start) * math.exp(quad(p.drift_factor, start, t, epsabs=1e-13)[0])
        assert p.alpha(t) == pytest.approx(expected, rel=1e-11)


def variance_by_the_sde(p):
    """d var / dt = 2 a var + g^2, against sigma^2."""

    def rate(t, v):
        return 2 * p.drift_factor(t) * v + p.diffusion(t) ** 2

    for t, (variance,) in follow(rate, [p.sigma(p.t_min) ** 2], p):
        assert p.sigma(t) ** 2 == pytest.approx(variance, rel=1e-9)


@each_process
def test_variance_solves_the_moment_equation(p):
    variance_by_the_sde(p)


@dataclass(frozen=True)
class WrongDiffusion(TrigFlow):
    def diffusion(self, t):
        return 1.001 * super().diffusion(t)


@dataclass(frozen=True)
class WrongChain(DDPM):
    def drift_factor(self, t):
        return super().drift_factor(t) * 1.001


@pytest.mark.parametrize("p", [WrongDiffusion(), WrongChain(9, "cosine")], ids=repr)
def test_the_moment_equation_can_fail(p):
    with pytest.raises(AssertionError):
        variance_by_the_sde(p)


@each_process
def test_diffusion_by_finite_differences(p):
    """g^2 = d sigma^2 / dt - 2 a sigma^2, between the kinks."""
    for a, b in pieces(p):
        t, h = 0.5 * (a + b), 1e-4 * (b - a)
        slope = (p.sigma(t + h) ** 2 - p.sigma(t - h) ** 2) / (2 * h)
        expected = slope - 2 * p.drift_factor(t) * p.sigma(t) ** 2
        assert p.diffusion(t) ** 2 == pytest.approx(expected, rel=1e-6)


@each_process
@pytest.mark.parametrize("stochastic", [False, True])
def test_backward_in_time_keeps_the_marginals_of_gaussian_data(p, stochastic):
    """Mean and variance of the reverse SDE and the ODE with the exact score, in closed form."""
    mu, s = 0.2, 0.7

    def moments(t):
        return p.alpha(t) * mu, (p.alpha(t) * s) ** 2 + p.sigma(t) ** 2

    score = p.score_of(Gaussian(s, mu))
    sde = p.reverse(score) if stochastic else p.probability_flow(score)

    def rate(t, y):
        mean, variance = moments(t)
        a, b, g = sde.terms(t)
        slope = a - b / variance  # of the drift a x + b (mean - x) / variance
        return [slope * y[0] + b * mean / variance, 2 * slope * y[1] - g * g]

    back = [(end, start) for start, end in reversed(pieces(p))]
    for t, y in follow(rate, moments(back[0][0]), p, back):
        assert list(y) == pytest.approx(moments(t), rel=1e-7)


@each_process
def test_drift_factor_by_finite_differences(p):
    for a, b in pieces(p):
        t, h = 0.5 * (a + b), 1e-4 * (b - a)
        slope = (math.log(p.alpha(t + h)) - math.log(p.alpha(t - h))) / (2 * h)
        assert p.drift_factor(t) == pytest.approx(slope, rel=1e-6, abs=1e-9)


@each_process
def test_karras_coordinates_and_their_inverse(p):
    for t in grid(p):
        assert p.sigma_hat(t) == pytest.approx(p.sigma(t) / p.alpha(t), rel=1e-13)
        assert p.t_of_sigma(p.sigma_hat(t)) == pytest.approx(t, rel=1e-12)
    x = torch.randn(4, 3, dtype=torch.float64)
    t = torch.tensor(grid(p, 4), dtype=torch.float64)
    x_hat, level = p.to_karras(x, t)
    back, time = p.from_karras(x_hat, level)
    torch.testing.assert_close(back, x, rtol=1e-13, atol=0)
    torch.testing.assert_close(time, t, rtol=1e-12, atol=1e-15)


@each_process
def test_floats_and_tensors_agree(p):
    times = grid(p)
    tensor = torch.tensor(times, dtype=torch.float64)
    for name in ("alpha", "sigma", "drift_factor", "diffusion", "sigma_hat", "t_of_sigma"):
        function = getattr(p, name)
        values = function(tensor)
        assert values.dtype == torch.float64 and values.shape == tensor.shape
        for value, t in zip(values.tolist(), times, strict=True):
            assert isinstance(function(t), float)
            assert value == pytest.approx(function(t), rel=1e-14, abs=1e-300)
    assert p.sigma(torch.tensor(0.5)).dtype == torch.float64


@pytest.mark.parametrize("p", [cm.VP(), cm.SubVP()], ids=repr)
def test_relative_accuracy_next_to_zero(p):
    """Against the series of the integral: 1 - exp(-x) = x - x^2/2 would lose all digits here."""
    t = 1e-14
    total = p.beta_min * t
    expected = math.sqrt(total) if isinstance(p, cm.VP) else total
    assert p.sigma(t) == pytest.approx(expected, rel=1e-10)
    assert p.t_of_sigma(p.sigma_hat(t)) == pytest.approx(t, rel=1e-10)


@pytest.mark.parametrize(
    "p, slope",
    [
        (RectifiedFlow(), 1.0),
        (TrigFlow(0.3), 0.3),
        (DDPM(), float(DDPM().sigmas[0])),
        (DDPM(zero_terminal_snr=True), float(DDPM().sigmas[0])),
    ],
    ids=repr,
)
def test_relative_accuracy_next_to_clean(p, slope):
    """sigma = slope * time there; a chain's clean end is -1, so its times hold fewer digits."""
    for level in (1e-4, 1e-7):
        t = p.t_of_sigma(level)
        clean = -1.0 if isinstance(p, DDPM) else 0.0
        assert t - clean == pytest.approx(level / slope, rel=1.01 * level + 1e-11)
        assert p.sigma_hat(t) == pytest.approx(level, rel=1e-11 if clean else 1e-14)
        assert p.sigma(t) / p.alpha(t) == pytest.approx(level, rel=1e-11 if clean else 1e-14)


def test_where_no_signal_is_left():
    """The marginals are exact there; the level and the coefficients are infinite."""
    for p, t in ((RectifiedFlow(), 1.0), (DDPM(zero_terminal_snr=True), 999.0)):
        for time in (t, torch.tensor(t)):
            assert float(p.alpha(time)) == 0.0 and float(p.sigma(time)) == 1.0
            assert float(p.sigma_hat(time)) == math.inf
            assert float(p.drift_factor(time)) == -math.inf
            assert float(p.diffusion(time)) == math.inf
        mean, std = p.marginal(torch.ones(2, 3), torch.tensor([t, t]))
        assert not mean.any() and bool((std == 1).all())


def test_the_paths_as_the_papers_write_them():
    t, sd = 0.3, 0.5
    flow, trig = RectifiedFlow(), TrigFlow(sd)
    assert (flow.alpha(t), flow.sigma(t)) == (0.7, 0.3)
    assert (trig.alpha(t), trig.sigma(t)) == (math.cos(t), sd * math.sin(t))
    assert trig.t_min == math.atan(0.002 / sd) and trig.t_max == math.atan(80 / sd)
    assert flow.sigma_hat(flow.t_max) == pytest.approx(999.0)


def test_subvp_is_vp_with_the_variance_squared():
    for t in (1e-3, 0.2, 1.0):
        assert cm.SubVP().sigma(t) == pytest.approx(cm.VP().sigma(t) ** 2, rel=1e-14)
        assert cm.SubVP().alpha(t) == cm.VP().alpha(t)


@each_process
def test_marginal_and_drift_per_sample(p):
    x = torch.randn(3, 2, 2)
    t = torch.tensor(grid(p, 3))
    mean, std = p.marginal(x, t)
    assert mean.dtype == torch.float32 and std.shape == (3, 1, 1)
    for b in range(3):
        one, dev = p.marginal(x[b : b + 1], t[b].item())
        torch.testing.assert_close(mean[b : b + 1], one)
        assert std[b].item() == pytest.approx(dev, rel=1e-6)
        torch.testing.assert_close(p.drift(x, t)[b : b + 1], p.drift(x[b : b + 1], t[b].item()))


@each_process
def test_reverse_and_flow_by_their_definition(p):
    data = Gaussian(0.7, 0.2)
    score = p.score_of(data)
    x = torch.randn(5, 2, dtype=torch.float64)
    for t in grid(p)[1:]:
        times = torch.full((5,), t, dtype=torch.float64)
        mean, variance = p.alpha(t) * 0.2, (p.alpha(t) * 0.7) ** 2 + p.sigma(t) ** 2
        exact = (mean - x) / variance
        torch.testing.assert_close(score(x, times), exact, rtol=1e-9, atol=1e-9)
        forward, g = p.drift(x, t), p.diffusion(t)
        reverse, flow = p.reverse(score), p.probability_flow(score)
        torch.testing.assert_close(reverse.drift(x, t), forward - g * g * exact)
        torch.testing.assert_close(flow.drift(x, times), forward - 0.5 * g * g * exact)
        assert reverse.diffusion(t) == g and flow.diffusion(t) == 0


@each_process
def test_prior(p):
    x = p.prior((4000, 2), seed=3)
    assert x.std().item() == pytest.approx(p.prior_std, rel=0.05)
    shard = p.prior((10, 2), seed=3, offset=20)
    assert torch.equal(shard, x[20:30])
    assert torch.equal(p.prior((10, 2), seed=3, dtype=torch.float64).float(), x[:10])


def test_frozen():
    with pytest.raises(AttributeError):
        cm.VP().beta_min = 1.0


def test_the_time_of_no_noise_is_zero_where_beta_starts_at_zero():
    for process in (cm.VP(0.0, 10.0), cm.SubVP(0.0, 10.0)):
        assert process.t_of_sigma(0.0) == 0.0
        assert process.t_of_sigma(torch.zeros(2)).tolist() == [0.0, 0.0]
        assert process.t_of_sigma(process.sigma_hat(0.3)) == pytest.approx(0.3, rel=1e-12)


def test_score_of_half_precision_keeps_its_digits():
    """0.002^2 alone has two digits in float16."""
    p, data = cm.Karras(), Gaussian(0.5)
    x = torch.tensor([[0.001], [0.25]])
    exact = p.score_of(lambda x, s: 0 * x)(x.double(), 0.002)[:1]
    half = p.score_of(lambda x, s: 0 * x)(x.half(), 0.002)[:1]
    torch.testing.assert_close(half.double(), exact, rtol=1e-3, atol=0)
    assert torch.isfinite(p.score_of(data)(x.half(), 0.002)).all()
