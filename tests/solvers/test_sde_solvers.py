"""The t-space solvers against independent transcriptions of their sources, in float64."""

# ruff: noqa: E731 - a table binds the variables of its loops as defaults of lambdas

import math
from itertools import pairwise

import pytest
import torch

import cmsolvers as cm
from cmsolvers import milstein, predictor_corrector, sra1, stochastic_heun
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from support.columns import column
from support.sde_cases import F64, SEED, close, latent, two_normals, z

NAN = math.nan
MIXTURE = GaussianMixture(
    torch.randn(3, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(1)), [0.2, 0.5, 0.3]
)
PROCESSES = {"vp": cm.VP(), "sub-vp": cm.SubVP(), "ve": cm.VE(), "karras": cm.Karras()}
each_process = pytest.mark.parametrize("p", PROCESSES.values(), ids=PROCESSES)


# --- transcriptions ------------------------------------------------------------------------------


def heun_as_published(f, g, x, ts, noises):
    for i, (t, u) in enumerate(pairwise(ts)):
        dt, dw = u - t, math.sqrt(abs(u - t)) * noises(i)
        y = x + f(x, t) * dt + g(x, t) * dw
        x = x + 0.5 * (f(x, t) + f(y, u)) * dt + 0.5 * (g(x, t) + g(y, u)) * dw
    return x


def sra1_as_published(f, g, x, ts, noises):
    """Rößler (2010): H_1 = x, H_2, and the sum over its table, in I_(1) and I_(1,0)."""
    for i, (t, u) in enumerate(pairwise(ts)):
        dt, h = u - t, abs(u - t)
        z1, z2 = noises(i)
        i1, i10 = math.sqrt(h) * z1, 0.5 * h**1.5 * (z1 + z2 / math.sqrt(3))
        c0, c1 = (t, t + 0.75 * dt), (u, t)
        first = f(x, c0[0])
        second = f(x + 0.75 * first * dt + 1.5 * g(x, c1[0]) * i10 / h, c0[1])
        x = x + (first / 3 + 2 * second / 3) * dt
        x = x + (i1 - i10 / h) * g(x, c1[0]) + (i10 / h) * g(x, c1[1])
    return x


def milstein_as_published(f, g, slope, x, ts, noises):
    for i, (t, u) in enumerate(pairwise(ts)):
        dt, h = u - t, abs(u - t)
        dw = math.sqrt(h) * noises(i)
        x = x + f(x, t) * dt + g(x, t) * dw + 0.5 * g(x, t) * slope(x, t) * (dw * dw - h)
    return x


def parts(p, kind):
    """(sde, drift, diffusion, times) of a process run one way, for x of float64."""
    score = p.score_of(MIXTURE)
    share = {"forward": 0.0, "reverse": 1.0, "flow": 0.5}[kind]
    sde = {"forward": p, "reverse": p.reverse(score), "flow": p.probability_flow(score)}[kind]

    def drift(x, t):
        forward = p.drift(x, t)
        return forward - share * p.diffusion(t) ** 2 * score(x, t) if share else forward

    ts = [p.t_min + (p.t_max - p.t_min) * k / 12 for k in range(13)]
    diffusion = lambda x, t: 0.0 if kind == "flow" else p.diffusion(t)
    return sde, drift, diffusion, ts if kind == "forward" else ts[::-1]


@each_process
@pytest.mark.parametrize("kind", ["forward", "reverse", "flow"])
def test_processes_as_transcribed(p, kind):
    x = latent()
    sde, f, g, ts = parts(p, kind)
    plain = cm.SDE(sde.drift, sde.diffusion)
    before = x.clone()
    evaluations = 0 if kind == "forward" else 24
    expected = heun_as_published(f, g, x, ts, lambda i: z(x, i))
    got, info = stochastic_heun(sde, x, ts, seed=SEED, return_info=True)
    close(got, expected)
    assert info.nfe == evaluations and info.steps == 12 and torch.equal(x, before)
    close(stochastic_heun(plain, x, ts, seed=SEED), expected)
    expected = sra1_as_published(f, g, x, ts, two_normals(x))
    got, info = sra1(sde, x, ts, seed=SEED, return_info=True)
    close(got, expected)
    assert info.nfe == evaluations and torch.equal(x, before)
    close(sra1(plain, x, ts, seed=SEED), expected)
    assert torch.equal(milstein(sde, x, ts, seed=SEED), cm.euler_maruyama(sde, x, ts, seed=SEED))


def sharp(x, t):
    return -x + column(t * torch.ones(5, dtype=F64), 3)


SPREADS = {
    "number": lambda t: 0.3,
    "batch": lambda t: 0.1 * (1 + t) * torch.arange(5, dtype=F64),
    "elements": lambda t: torch.linspace(0, 1, 40, dtype=F64).reshape(5, 2, 4),
    "rows": lambda t: torch.linspace(0, 1, 4, dtype=F64).reshape(1, 4),
}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("own", [False, True], ids=["built-in", "own noise"])
def test_spreads_of_any_shape(spread, own):
    x, ts = latent(), torch.linspace(0, 1, 11, dtype=F64).tolist()
    sde = cm.SDE(sharp, spread)

    def g(x, t):
        value = spread(t)
        return column(value, 3) if isinstance(value, torch.Tensor) and value.ndim == 1 else value

    increments = iter(range(10))
    options = {"noise_sampler": lambda a, b: z(x, next(increments), 8)} if own else {"seed": SEED}
    expected = heun_as_published(sharp, g, x, ts, lambda i: z(x, i, 8 if own else SEED))
    close(stochastic_heun(sde, x, ts, **options), expected)
    increments, areas = iter(range(10)), iter(range(10, 20))
    both = lambda i: (z(x, i, 8), z(x, 10 + i, 8))
    expected = sra1_as_published(sharp, g, x, ts, both if own else two_normals(x))
    if own:
        options["area_sampler"] = lambda a, b: z(x, next(areas), 8)
    close(sra1(sde, x, ts, **options), expected)


def test_state_dependent_diffusion_as_transcribed():
    x, ts = latent(), torch.linspace(0, 1, 11, dtype=F64).tolist()
    g = lambda x, t: torch.sin(x) * (1 + column(t * torch.ones(5, dtype=F64), 3))
    slope = lambda x, t: torch.cos(x) * (1 + column(t * torch.ones(5, dtype=F64), 3))
    expected = milstein_as_published(sharp, g, slope, x, ts, lambda i: z(x, i))
    for derivative in (None, slope):
        sde = cm.SDE(sharp, g, state_dependent=True, diffusion_derivative=derivative)
        close(milstein(sde, x, ts, seed=SEED), expected)
        backward = milstein_as_published(sharp, g, slope, x, ts[::-1], lambda i: z(x, i))
        close(milstein(sde, x, ts[::-1], seed=SEED), backward)
    with torch.no_grad():
        close(milstein(sde, x, ts, seed=SEED), expected)
    close(
        stochastic_heun(sde, x, ts, seed=SEED),
        heun_as_published(sharp, g, x, ts, lambda i: z(x, i)),
    )
    number = cm.SDE(sharp, lambda x, t: 0.3, state_dependent=True)
    plain = cm.SDE(sharp, lambda t: 0.3)
    close(milstein(number, x, ts, seed=SEED), cm.euler_maruyama(plain, x, ts, seed=SEED))


def by_norms(s, normal, sigma, snr):
    """Song et al. (2021), algorithms 4 and 5, and their code: norms averaged over the batch."""
    sizes = [torch.linalg.vector_norm(v.flatten(1), dim=1).mean() for v in (normal, s)]
    return (snr * sizes[0] / sizes[1]) ** 2


def by_level(s, normal, sigma, snr):
    return torch.tensor((snr * sigma) ** 2, dtype=F64)


def pc_as_published(p, score, x, ts, predictor, m, *, variance, denoise, size=by_level):
    """Algorithms 2 (VE) and 3 (VP), with beta_i = 1 - (alpha_i / alpha_{i-1})^2; app. E, F."""
    for i, (t, u) in enumerate(pairwise(ts)):
        s, normal = score(x, t), z(x, i * (1 + m))
        if isinstance(p, cm.VP):
            beta = -math.expm1(p.beta_integral(u) - p.beta_integral(t))
            kept = math.sqrt(1 - beta)
            smaller = beta * p.sigma(u) ** 2 / p.sigma(t) ** 2
            spread = {"posterior": smaller, "forward": beta}[variance]
        else:
            kept, beta = 1.0, p.sigma(t) ** 2 - p.sigma(u) ** 2
            smaller = beta * p.sigma(u) ** 2 / p.sigma(t) ** 2
            spread = {"posterior": smaller, "forward": beta}[variance]
        if predictor == "reverse_diffusion":
            x = (2 - kept) * x + beta * s + math.sqrt(beta) * normal
        elif predictor == "ancestral":
            x = (x + beta * s) / kept + math.sqrt(spread) * normal
        else:
            g, dt = p.diffusion(t), u - t
            x = x + (p.drift_factor(t) * x - g * g * s) * dt + g * math.sqrt(-dt) * normal
        below = p.alpha(ts[i + 2]) if i + 2 < len(ts) else 1.0
        alpha = (p.alpha(u) / below) ** 2  # 1 - beta of the chain's step up to u
        for j in range(m):
            s, normal = score(x, u), z(x, i * (1 + m) + 1 + j)
            step = 2 * alpha * size(s, normal, p.sigma(u), 0.2)
            x = x + step * s + torch.sqrt(2 * step) * normal
    if denoise:
        x = (x + p.sigma(ts[-1]) ** 2 * score(x, ts[-1])) / p.alpha(ts[-1])
    return x


@pytest.mark.parametrize("p", [cm.VP(), cm.VE(), cm.Karras()], ids=["vp", "ve", "karras"])
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral", "euler_maruyama"])
@pytest.mark.parametrize("m", [0, 1, 2])
def test_predictor_corrector_as_transcribed(p, predictor, m):
    sde, _, _, ts = parts(p, "reverse")
    score, x = sde.score, p.prior_std * latent()
    for variance, denoise in (("posterior", False), ("forward", True)):
        options = {"variance": variance, "denoise": denoise}
        expected = pc_as_published(p, score, x, ts, predictor, m, **options)
        published = pc_as_published(p, score, x, ts, predictor, m, **options, size=by_norms)
        got, info = predictor_corrector(
            sde,
            x,
            ts,
            predictor=predictor,
            corrector_steps=m,
            snr=0.2,
            seed=SEED,
            return_info=True,
            **options,
        )
        close(got, expected)
        assert info.nfe == 12 * (1 + m) + denoise
        options |= {"predictor": predictor, "corrector_steps": m, "snr": 0.2, "seed": SEED}
        close(predictor_corrector(sde, x, ts, step_size="batch", **options), published)
        if m:
            assert (got - published).abs().max() > 1e-3


def test_ancestral_prediction_is_ddpm():
    """The chain in the process's coordinates is the sampler in noise levels, with 0 at the end."""
    p, x = cm.VP(), latent()
    sde, _, _, ts = parts(p, "reverse")
    ts = [*ts, 0.0]
    got = predictor_corrector(sde, x, ts, predictor="ancestral", corrector_steps=0, seed=SEED)
    levels = [p.sigma_hat(t) for t in ts]
    expected = cm.ddpm_ancestral(MIXTURE, x / p.alpha(ts[0]), levels, seed=SEED)
    close(got, expected, rtol=1e-8)  # near t = 0 the score divides by sigma^2


def test_reverse_diffusion_on_the_ode():
    p, x = cm.VP(), latent()
    sde, _, _, ts = parts(p, "flow")
    expected = x
    for t, u in pairwise(ts):
        beta = -math.expm1(p.beta_integral(u) - p.beta_integral(t))
        s = sde.score(expected, t)
        expected = (2 - math.sqrt(1 - beta)) * expected + 0.5 * beta * s
    close(predictor_corrector(sde, x, ts, corrector_steps=0), expected)


def test_the_corrector_repairs_a_coarse_predictor():
    """Gaussian data: few steps give a wrong spread, Langevin steps bring it back."""
    p = cm.VE(sigma_min=0.05, sigma_max=10.0)
    sde = p.reverse(p.score_of(Gaussian(1.0)))
    x = p.prior((1024, 64), seed=1, dtype=F64) * math.sqrt(1 + p.prior_std**-2)
    ts = torch.linspace(1, 0, 9, dtype=F64)
    wrong = predictor_corrector(sde, x, ts, corrector_steps=0, seed=SEED).square().mean()
    options = {"corrector_steps": 30, "snr": 0.1, "step_size": "batch"}
    right = predictor_corrector(sde, x, ts, seed=SEED, **options).square().mean()
    exact = 1 + p.sigma(0.0) ** 2
    assert abs(wrong - exact) > 10 * abs(right - exact)


@pytest.mark.parametrize("d", [1, 2, 8])
@pytest.mark.parametrize("p", [cm.VP(), cm.VE(0.01, 20.0)], ids=["vp", "ve"])
@pytest.mark.parametrize("step_size", ["level", "batch"])
def test_the_law_in_few_dimensions(d, p, step_size):
    """Gaussian data: the variance is right, where steps by each sample's own norms blow it up."""
    sde, end = p.reverse(p.score_of(Gaussian(0.5))), 0.0 if isinstance(p, cm.VE) else p.t_min
    x = p.prior((4000, d), seed=1, dtype=F64)
    ts = torch.linspace(p.t_max, end, 400, dtype=F64)
    y = predictor_corrector(sde, x, ts, seed=3, step_size=step_size)
    exact = 0.25 * p.alpha(end) ** 2 + p.sigma(end) ** 2
    assert y.square().mean().item() / exact == pytest.approx(1.0, abs=0.06)


def test_a_score_near_zero_makes_no_large_step():
    p = cm.VE(0.01, 20.0)
    sde = p.reverse(p.score_of(Gaussian(0.5)))
    y = predictor_corrector(sde, torch.tensor([[1e-3]]), [0.1001, 0.1], seed=1)
    assert abs(y.item()) < 0.1  # 53.65 with a step by the sample's own norms


def test_samples_do_not_depend_on_their_batch_unless_their_norms_do():
    p, x = cm.VE(), latent()
    sde, ts = p.reverse(lambda x, t: -x / (1 + x * x)), [1.0, 0.7, 0.4]
    whole = predictor_corrector(sde, x, ts, seed=SEED)
    assert torch.equal(predictor_corrector(sde, x[:1], ts, seed=SEED), whole[:1])
    coupled = predictor_corrector(sde, x, ts, seed=SEED, step_size="batch")
    alone = predictor_corrector(sde, x[:1], ts, seed=SEED, step_size="batch")
    assert not torch.allclose(alone, coupled[:1])


def test_a_batch_with_no_score_is_left_alone():
    p, x = cm.VE(), latent()
    sde = p.reverse(lambda x, t: torch.zeros_like(x))
    options = {"predictor": "ancestral", "step_size": "batch"}
    got = predictor_corrector(sde, x, [1.0, 0.5], seed=SEED, **options)
    beta = p.sigma(1.0) ** 2 - p.sigma(0.5) ** 2
    close(got, x + math.sqrt(beta) * p.sigma(0.5) / p.sigma(1.0) * z(x, 0))


@pytest.mark.parametrize("batch", [4, 5], ids=["square", "oblong"])
def test_a_diffusion_a_sample_that_begins_to_carry_derivatives(batch):
    """Within one step g(x) has no derivative yet, and g(y) has one."""
    x, scale = latent()[:batch, 0], torch.ones((), dtype=F64, requires_grad=True)
    sde = cm.SDE(lambda x, t: -scale * x, lambda x, t: 0.1 * x.norm(dim=1), state_dependent=True)
    own = stochastic_heun(sde, x, [0.0, 0.5, 1.0], seed=SEED, grad=True)
    assert own.requires_grad
    with torch.no_grad():
        close(own.detach(), stochastic_heun(sde, x, [0.0, 0.5, 1.0], seed=SEED))


def test_gradients_where_the_score_is_zero():
    """A network whose last layer starts at zero is the usual case."""
    w = torch.zeros((), dtype=F64, requires_grad=True)
    sde = cm.VP().reverse(lambda x, t: w * x)
    y = predictor_corrector(sde, latent(), [1.0, 0.5, 0.1], seed=SEED, grad=True)
    (slope,) = torch.autograd.grad(y.sum(), w)
    assert slope.isfinite() and slope != 0
