"""Each sampler against an independent transcription of its published algorithm, in float64."""

import math

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, noise
from cmsolvers.oracles import Gaussian, GaussianMixture

F64 = torch.float64
SIGMAS = cm.karras_sigmas(9, 0.01, 20.0)
SEED = 1234
MIXTURE = GaussianMixture(
    torch.randn(3, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(1)), [0.2, 0.5, 0.3]
)


def latent():
    return 20 * torch.randn(5, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(2))


def z(i, x):
    return noise.normal(x.shape, SEED, draw=i, stream=noise.STEPS, dtype=x.dtype)


def edm_algorithm_2(
    model, x, levels, *, correct, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0
):
    """Karras et al. (2022), algorithm 2, line by line."""
    n = len(levels) - 1
    for i in range(n):
        t, t_next = levels[i], levels[i + 1]
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0
        t_hat = t + gamma * t
        if gamma:
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * z(i, x)
        d = (x - model(x, t_hat)) / t_hat
        x_next = x + (t_next - t_hat) * d
        if correct and t_next != 0:
            d_next = (x_next - model(x_next, t_next)) / t_next
            x_next = x + (t_next - t_hat) * (d / 2 + d_next / 2)
        x = x_next
    return x


def ddim_in_alphas(model, x, levels, *, eta, s_noise=1.0):
    """Song et al. (2021), eq. 12 and 16, in their own coordinates: alpha = 1 / (1 + sigma^2)."""
    alphas = [1 / (1 + s * s) for s in levels]
    x = x * math.sqrt(alphas[0])
    for i in range(len(levels) - 1):
        a, b = alphas[i], alphas[i + 1]
        clean = model(x / math.sqrt(a), levels[i])
        eps = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
        spread = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        direction = math.sqrt(max(0.0, 1 - b - spread**2)) * eps
        x = math.sqrt(b) * clean + direction + s_noise * spread * z(i, x)
    return x / math.sqrt(alphas[-1])


def ddpm_posterior(model, x, levels):
    """Ho et al. (2020), eq. 6-7: the posterior's mean and variance, in their own coordinates."""
    alphas = [1 / (1 + s * s) for s in levels]
    x = x * math.sqrt(alphas[0])
    for i in range(len(levels) - 1):
        bar, bar_next = alphas[i], alphas[i + 1]
        alpha = bar / bar_next
        beta = 1 - alpha
        clean = model(x / math.sqrt(bar), levels[i])
        mean = math.sqrt(bar_next) * beta / (1 - bar) * clean
        mean = mean + math.sqrt(alpha) * (1 - bar_next) / (1 - bar) * x
        x = mean + math.sqrt((1 - bar_next) / (1 - bar) * beta) * z(i, x)
    return x / math.sqrt(alphas[-1])


def consistency_algorithm_1(f, x, levels, *, sigma_min):
    """Song et al. (2023), algorithm 1."""
    y = f(x, levels[0])
    for i, s in enumerate(levels[1:]):
        s = max(s, sigma_min)
        y = f(y + math.sqrt(s**2 - sigma_min**2) * z(i, y), s)
    return y


CHURN = {"s_churn": 5.0, "s_tmin": 0.05, "s_tmax": 8.0, "s_noise": 1.003}
TABLE = [
    (cm.euler_pf_ode, {}, lambda m, x, s: edm_algorithm_2(m, x, s, correct=False), 9),
    (cm.heun_pf_ode, {}, lambda m, x, s: edm_algorithm_2(m, x, s, correct=True), 17),
    (
        cm.euler_pf_ode,
        CHURN,
        lambda m, x, s: edm_algorithm_2(m, x, s, correct=False, **CHURN),
        9,
    ),
    (
        cm.heun_pf_ode,
        CHURN,
        lambda m, x, s: edm_algorithm_2(m, x, s, correct=True, **CHURN),
        17,
    ),
    (
        cm.heun_pf_ode,
        {"s_churn": 100.0},
        lambda m, x, s: edm_algorithm_2(m, x, s, correct=True, s_churn=100.0),
        17,
    ),
    (cm.ddim, {}, lambda m, x, s: ddim_in_alphas(m, x, s, eta=0.0), 9),
    (cm.ddim, {"eta": 0.6}, lambda m, x, s: ddim_in_alphas(m, x, s, eta=0.6), 9),
    (
        cm.ddim,
        {"eta": 1.0, "s_noise": 0.9},
        lambda m, x, s: ddim_in_alphas(m, x, s, eta=1.0, s_noise=0.9),
        9,
    ),
    (cm.ddpm_ancestral, {}, ddpm_posterior, 9),
    (cm.ddpm_ancestral, {"eta": 0.3}, lambda m, x, s: ddim_in_alphas(m, x, s, eta=0.3), 9),
    (
        cm.consistency_sample,
        {},
        lambda m, x, s: consistency_algorithm_1(m, x, s[:-1], sigma_min=0.002),
        9,
    ),
    (
        cm.consistency_sample,
        {"sigma_min": 0.03},
        lambda m, x, s: consistency_algorithm_1(
            m, x, [max(v, 0.03) for v in s[:-1]], sigma_min=0.03
        ),
        9,
    ),
]
IDS = [f"{row[0].__name__}-{row[1]}" for row in TABLE]
each_sampler = pytest.mark.parametrize("sampler, options, algorithm, nfe", TABLE, ids=IDS)


def close(got, expected):
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < 1e-10, error


@each_sampler
def test_a_callable_as_transcribed(sampler, options, algorithm, nfe):
    x, levels = latent(), SIGMAS.tolist()
    before = x.clone()
    got, info = sampler(MIXTURE, x, SIGMAS, seed=SEED, return_info=True, **options)
    close(got, algorithm(MIXTURE, x, levels))
    assert info.nfe == nfe and info.steps == 9
    assert torch.equal(x, before)


@each_sampler
def test_levels_that_do_not_end_in_zero(sampler, options, algorithm, nfe):
    if sampler is cm.consistency_sample:
        levels = SIGMAS.tolist()
        got = sampler(MIXTURE, latent(), levels[:-1], seed=SEED, **options)
        close(got, algorithm(MIXTURE, latent(), levels))
        return
    levels = SIGMAS.tolist()[:-1]
    got, info = sampler(MIXTURE, latent(), levels, seed=SEED, return_info=True, **options)
    close(got, algorithm(MIXTURE, latent(), levels))
    assert info.nfe == (16 if sampler is cm.heun_pf_ode else 8)


def wave(x, c, gain=1.0):
    return gain * (x * 1.3).sin() + 0.1 * c.reshape(-1, 1, 1)


def tame(x, c, gain=1.0):
    """A score of a size that scores have; sigma^2 would amplify rounding errors otherwise."""
    return wave(x, 0 * c, gain) / (1 + c**2).reshape(-1, 1, 1)


RAW = {
    "edm": (denoisers.EDM, wave),
    "eps": (denoisers.from_eps, wave),
    "v": (denoisers.from_v, wave),
    "x0": (denoisers.from_x0, wave),
    "score": (denoisers.from_score, tame),
}


@each_sampler
@pytest.mark.parametrize("kind", RAW)
def test_raw_networks_are_folded_right(sampler, options, algorithm, nfe, kind):
    make, net = RAW[kind]
    denoiser = make(net)
    if sampler is cm.consistency_sample:
        denoiser = denoisers.ConsistencyFunction(net, sigma_min=options.get("sigma_min", 0.002))
    calls = []

    def counting(x, c, **extra):
        calls.append(1)
        return net(x, c, **extra)

    x, levels = latent(), SIGMAS.tolist()
    expected = algorithm(lambda x, s: denoiser(x, s, gain=0.8), x, levels)
    denoiser.net = counting
    args = {"seed": SEED, "extra_args": {"gain": 0.8}, **options}
    got, info = sampler(denoiser, x, SIGMAS, return_info=True, **args)
    close(got, expected)
    assert info.nfe == nfe == len(calls)
    seen = []
    shown = sampler(denoiser, x, SIGMAS, callback=seen.append, **args)
    assert torch.equal(shown, got)
    for entry in seen:
        close(entry["denoised"], denoiser(entry["x"], entry["sigma_hat"], gain=0.8))


@each_sampler
@pytest.mark.parametrize("state, model", [(F64, torch.float32), (torch.float32, torch.float16)])
def test_networks_of_lower_precision(sampler, options, algorithm, nfe, state, model):
    def net(x, c, **extra):
        assert x.dtype == model and c.dtype == (F64 if state == F64 else torch.float32)
        return wave(x, c, **extra).to(model)

    make = denoisers.ConsistencyFunction if sampler is cm.consistency_sample else denoisers.EDM
    extra = {"sigma_min": options["sigma_min"]} if "sigma_min" in options else {}
    exact = algorithm(make(wave, **extra), latent(), SIGMAS.tolist())
    got = sampler(make(net, dtype=model, **extra), latent().to(state), SIGMAS, seed=SEED, **options)
    assert got.dtype == state
    torch.testing.assert_close(got.double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("p", [cm.VP(), cm.SubVP(), cm.VE(), cm.Karras()], ids=repr)
@pytest.mark.parametrize("kind", ["forward", "reverse", "flow"])
def test_euler_maruyama_as_transcribed(p, kind):
    score = p.score_of(MIXTURE)
    ts = [p.t_min + (p.t_max - p.t_min) * k / 20 for k in range(21)]
    if kind != "forward":
        ts = ts[::-1]
    x = start = latent() / 10
    for i in range(20):
        t, dt = ts[i], ts[i + 1] - ts[i]
        f, g = p.drift(x, t), p.diffusion(t)
        if kind != "forward":
            s = score(x, torch.full((5,), t, dtype=F64))
            f = f - g * g * s * (1 if kind == "reverse" else 0.5)
        x = x + f * dt + (0 if kind == "flow" else 1) * g * math.sqrt(abs(dt)) * z(i, x)
    sde = {"forward": p, "reverse": p.reverse(score), "flow": p.probability_flow(score)}[kind]
    got, info = cm.euler_maruyama(sde, start, ts, seed=SEED, return_info=True)
    close(got, x)
    assert info.nfe == (0 if kind == "forward" else 20) and info.steps == 20
    general = cm.SDE(sde.drift, sde.diffusion)
    close(cm.euler_maruyama(general, start, ts, seed=SEED), x)


def column(v):
    return v.reshape(-1, 1, 1)


@pytest.mark.parametrize(
    "diffusion, dependent",
    [
        (lambda t: 0.3, False),
        (lambda t: torch.tensor(0.3, dtype=F64), False),
        (lambda t: 0.3 + t, False),
        (lambda t: column(0.3 + t), False),
        (lambda t: torch.linspace(0.1, 0.8, 8, dtype=F64).reshape(2, 4), False),
        (lambda x, t: 0.2 * x.cos() + column(t), True),
        (lambda x, t: 0.2 * x.square().mean((1, 2)), True),
    ],
)
def test_euler_maruyama_of_any_diffusion(diffusion, dependent):
    sde = cm.SDE(lambda x, t: -x + column(t), diffusion, dependent)
    ts = torch.linspace(0, 1, 11, dtype=F64)
    x = start = latent() / 10
    for i in range(10):
        t = ts[i].expand(5)
        g = diffusion(x, t) if dependent else diffusion(t)
        if isinstance(g, torch.Tensor) and g.ndim == 1:
            g = column(g)
        x = x + 0.1 * (-x + column(t)) + g * math.sqrt(0.1) * z(i, x)
    close(cm.euler_maruyama(sde, start, ts, seed=SEED), x)
    own = cm.euler_maruyama(sde, start, ts, noise_sampler=lambda a, b: z(round(a * 10), start))
    close(own, x)


def test_one_step_consistency_is_the_function():
    f = denoisers.ConsistencyFunction(wave)
    x = latent()
    for sigmas in ([20.0], [20.0, 0.0], torch.tensor([20.0])):
        got, info = cm.consistency_sample(f, x, sigmas, return_info=True)
        close(got, f(x, 20.0))
        assert info.nfe == 1
    got, info = cm.consistency_sample(f, x, [20.0, 1.0], seed=SEED, return_info=True)
    assert info.nfe == 2


def test_exact_consistency_function_gives_the_data():
    data = Gaussian(0.5)
    x = 80 * noise.normal((20_000, 1), 0, dtype=F64)
    for levels in ([80.0], [80.0, 1.0], [80.0, 5.0, 0.5, 0.1]):
        y = cm.consistency_sample(lambda x, s: data.consistency(x, s), x, levels, seed=SEED)
        assert y.std().item() == pytest.approx(0.5, rel=0.03)


def test_what_a_subclass_overrides_is_called():
    class Clipped(denoisers.EDM):
        def __call__(self, x, sigma, **extra_args):
            return super().__call__(x, sigma, **extra_args).clamp(-0.1, 0.1)

    class Pulled(cm.VP):
        def drift(self, x, t):
            return super().drift(x, t) + 1

    clipped, pulled, ts = Clipped(wave), Pulled(), [0.0, 0.4, 1.0]
    expected = cm.heun_pf_ode(lambda x, s: clipped(x, s), latent(), SIGMAS)
    assert torch.equal(cm.heun_pf_ode(clipped, latent(), SIGMAS), expected)
    expected = cm.euler_maruyama(cm.SDE(pulled.drift, pulled.diffusion), latent(), ts, seed=SEED)
    assert torch.equal(cm.euler_maruyama(pulled, latent(), ts, seed=SEED), expected)
