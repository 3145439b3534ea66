"""The t-space solvers beside Euler-Maruyama: transcriptions, the loop's promises, bad input."""

# ruff: noqa: E731 - a table binds the variables of its loops as defaults of lambdas

import inspect
import math
from itertools import pairwise

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers._fields import sample_norms
from cmsolvers.oracles import Gaussian, GaussianMixture
from cmsolvers.solvers.milstein import milstein
from cmsolvers.solvers.predictor_corrector import predictor_corrector
from cmsolvers.solvers.sra1 import sra1
from cmsolvers.solvers.stochastic_heun import stochastic_heun

F64, NAN = torch.float64, math.nan
SEED = 7
MIXTURE = GaussianMixture(
    torch.randn(3, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(1)), [0.2, 0.5, 0.3]
)
PROCESSES = {"vp": cm.VP(), "sub-vp": cm.SubVP(), "ve": cm.VE(), "karras": cm.Karras()}
each_process = pytest.mark.parametrize("p", PROCESSES.values(), ids=PROCESSES)


def latent(dtype=F64, shape=(5, 2, 4)):
    return noise.normal(shape, 3).to(dtype)


def z(x, draw, seed=SEED):
    return noise.normal(x.shape, seed, draw=draw, stream=noise.STEPS, dtype=x.dtype)


def column(v):
    return v.reshape(-1, 1, 1)


def close(got, expected, rtol=1e-10):
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < rtol, error


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


def two_normals(x):
    """(z of I_1, z of the area) from the built-in draws a, b of the documented rotation."""

    def noises(i):
        a, b = z(x, 2 * i), z(x, 2 * i + 1)
        return math.sqrt(0.75) * a + 0.5 * b, 0.5 * a - math.sqrt(0.75) * b

    return noises


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
    return -x + column(t * torch.ones(5, dtype=F64))


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
        return column(value) if isinstance(value, torch.Tensor) and value.ndim == 1 else value

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
    g = lambda x, t: torch.sin(x) * (1 + column(t * torch.ones(5, dtype=F64)))
    slope = lambda x, t: torch.cos(x) * (1 + column(t * torch.ones(5, dtype=F64)))
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


def langevin(score, x, t, normal, snr, alpha, norm):
    """Song et al. (2021), algorithms 4 and 5."""
    s = score(x, t)
    step = 2 * alpha * (snr * norm(normal) / norm(s)) ** 2
    return x + step * s + torch.sqrt(2 * step) * normal


def each_norm(v):
    return column(torch.linalg.vector_norm(v.flatten(1), dim=1))


def batch_norm(v):
    return each_norm(v).mean()


def pc_as_published(p, score, x, ts, predictor, m, *, variance, denoise, norm=each_norm):
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
        for j in range(m):
            x = langevin(score, x, u, z(x, i * (1 + m) + 1 + j), 0.2, kept**2, norm)
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
        if m:
            coupled = pc_as_published(p, score, x, ts, predictor, m, **options, norm=batch_norm)
            assert (got - coupled).abs().max() > 1e-3


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
    right = predictor_corrector(sde, x, ts, corrector_steps=30, snr=0.1, seed=SEED).square().mean()
    exact = 1 + p.sigma(0.0) ** 2
    assert abs(wrong - exact) > 10 * abs(right - exact)


def test_a_sample_with_no_score_is_left_alone():
    p, x = cm.VE(), latent()
    sde = p.reverse(lambda x, t: torch.zeros_like(x))
    got = predictor_corrector(sde, x, [1.0, 0.5], predictor="ancestral", seed=SEED)
    beta = p.sigma(1.0) ** 2 - p.sigma(0.5) ** 2
    close(got, x + math.sqrt(beta) * p.sigma(0.5) / p.sigma(1.0) * z(x, 0))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 24, 1000])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16, torch.bfloat16])
def test_norms_are_each_samples_own(size, dtype):
    x = latent(dtype, (9, size))
    whole = sample_norms(x)
    exact = torch.linalg.vector_norm(x.double(), dim=1)
    torch.testing.assert_close(whole.double(), exact, rtol=2e-6, atol=0)
    for b in range(9):
        assert torch.equal(sample_norms(x[b : b + 1]), whole[b : b + 1])


# --- what the loop promises ----------------------------------------------------------------------

VP, DATA = cm.VP(), Gaussian(0.5, 0.2)
T = [1.0, 0.8, 0.5, 0.3, 0.1]
REVERSE = VP.reverse(VP.score_of(DATA))
OWN = cm.SDE(lambda x, t: -x, lambda x, t: 0.1 * x, state_dependent=True)
RUNS = {
    "milstein": lambda x, **o: milstein(OWN, x, T, **o),
    "milstein-additive": lambda x, **o: milstein(REVERSE, x, T, **o),
    "heun": lambda x, **o: stochastic_heun(REVERSE, x, T, **o),
    "heun-own": lambda x, **o: stochastic_heun(OWN, x, T, **o),
    "sra1": lambda x, **o: sra1(REVERSE, x, T, **o),
    "sra1-forward": lambda x, **o: sra1(VP, x, T[::-1], **o),
    "sra1-own": lambda x, **o: sra1(cm.SDE(OWN.drift, lambda t: 0.1 * (1 + t)), x, T, **o),
    "pc": lambda x, **o: predictor_corrector(REVERSE, x, T, **o),
    "pc-denoise": lambda x, **o: predictor_corrector(
        REVERSE, x, T, predictor="ancestral", corrector_steps=2, denoise=True, **o
    ),
}
each_run = pytest.mark.parametrize("sample", RUNS.values(), ids=RUNS)
SHAPE = (7, 3, 5, 3)


@each_run
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_batch_splits_bit_for_bit(sample, dtype):
    x = latent(dtype, SHAPE)
    whole = sample(x, seed=11)
    assert whole.dtype == dtype
    for cut in (1, 4):
        rest = sample(x[cut:], seed=noise.key(11, 7 - cut, offset=cut))
        assert torch.equal(torch.cat([sample(x[:cut], seed=11), rest]), whole)


@each_run
def test_lower_precision_stays_near(sample):
    x = latent(torch.float16, SHAPE)
    exact = sample(x.double(), seed=1)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 0.03)):
        got = sample(x.to(dtype), seed=1).double()
        assert (got - exact).abs().max() < tolerance * exact.abs().max()


@each_run
def test_seeds_layouts_and_the_users_x(sample):
    x = latent(torch.float32, (7, 3, 5, 6))[..., ::2]
    before = x.clone()
    got = sample(x, seed=3)
    assert torch.equal(x, before) and torch.equal(got, sample(x, seed=3))
    assert not torch.equal(got, sample(x, seed=4))
    torch.testing.assert_close(got, sample(x.contiguous(), seed=3), rtol=1e-5, atol=1e-5)
    wide = x.contiguous(memory_format=torch.channels_last)
    last = sample(wide, seed=3)
    torch.testing.assert_close(last, got, rtol=1e-5, atol=1e-5)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    first = sample(x)
    torch.manual_seed(0)
    assert torch.equal(sample(x), first)
    assert sample(latent(torch.float32, (0, 3, 5)), seed=3).shape == (0, 3, 5)


@each_run
def test_callbacks_trajectories_and_nan_checks_change_nothing(sample, capsys):
    x, entries, copies = latent(torch.float32, SHAPE), [], []

    def callback(entry):
        entries.append(entry)
        copies.append(entry["x"].clone())

    plain = sample(x, seed=3)
    assert torch.equal(sample(x, seed=3, callback=callback), plain)
    assert [e["i"] for e in entries] == [0, 1, 2, 3]
    assert sorted(e["t"] for e in entries) == sorted(t for t, _ in times_of(sample, entries))
    for entry, copy in zip(entries, copies, strict=True):
        assert torch.equal(entry["x"], copy)
    got, info = sample(x, seed=3, trajectory=True, check_nan=True, progress=True)
    assert torch.equal(got, plain) and info.trajectory.shape == (5, *SHAPE)
    assert torch.equal(info.trajectory[:4], torch.stack(copies))
    assert torch.equal(info.trajectory[4], plain) and sorted(info.levels) == sorted(T)
    _, some = sample(x, seed=3, trajectory=[0.3])
    assert torch.equal(some.trajectory[0], info.trajectory[info.levels.index(0.3)])
    assert "NFE" in capsys.readouterr().err


def times_of(sample, entries):
    """The steps that the entries tell of must be those of T, forward or backward."""
    steps = [(e["t"], e["t_next"]) for e in entries]
    assert steps in (list(pairwise(T)), list(pairwise(T[::-1])))
    return steps


@each_run
def test_own_noise_of_library_noise_is_the_library(sample):
    x, draws = latent(F64, SHAPE), iter(range(100))
    options = {"noise_sampler": lambda a, b: z(x, next(draws))}
    if "area_sampler" in inspect.signature(sra1).parameters and sample in SRA1_RUNS:
        noises = two_normals(x)
        steps, areas = iter(range(4)), iter(range(4))
        options = {
            "noise_sampler": lambda a, b: noises(next(steps))[0],
            "area_sampler": lambda a, b: noises(next(areas))[1],
        }
    close(sample(x, **options), sample(x, seed=SEED), rtol=1e-12)


SRA1_RUNS = [RUNS[name] for name in ("sra1", "sra1-forward", "sra1-own")]


def test_who_is_asked_for_which_interval():
    asked, x = [], latent()

    def sampler(a, b):
        asked.append((a, b))
        return torch.zeros_like(x)

    for sample in (RUNS["milstein"], RUNS["heun"], RUNS["sra1"]):
        asked.clear()
        sample(x, noise_sampler=sampler)
        assert asked == list(pairwise(T))
    asked.clear()
    sra1(REVERSE, x, T, area_sampler=sampler, seed=1)
    assert asked == list(pairwise(T))
    asked.clear()
    predictor_corrector(REVERSE, x, T, corrector_steps=2, noise_sampler=sampler)
    assert asked == [e for t, u in pairwise(T) for e in ((t, u), (u, u), (u, u))]


def test_half_of_the_noise_of_sra1_can_be_built_in():
    """With increments alone the area is draw 2 i + 1, and the seed still governs."""
    x = latent()
    own = lambda a, b: torch.ones_like(x)
    steps = iter(range(4))
    area = lambda a, b: z(x, 2 * next(steps) + 1)
    got = sra1(REVERSE, x, T, noise_sampler=own, seed=SEED)
    assert torch.equal(got, sra1(REVERSE, x, T, noise_sampler=own, area_sampler=area))
    torch.manual_seed(3)
    first = sra1(REVERSE, x, T, noise_sampler=own)
    torch.manual_seed(3)
    assert torch.equal(first, sra1(REVERSE, x, T, noise_sampler=own))


@each_run
def test_derivatives_flow_through_a_run(sample):
    x = latent(F64, (2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sample(x, seed=1), (x,))
    with torch.no_grad():
        assert not sample(x, seed=1).requires_grad


def test_derivatives_in_the_diffusion():
    x, weight = latent(F64, (2, 3)), torch.tensor(0.4, dtype=F64, requires_grad=True)
    for solver, dependent in ((milstein, True), (stochastic_heun, True), (sra1, False)):

        def run(w, solver=solver, dependent=dependent):
            g = (lambda x, t: w * x.sin()) if dependent else (lambda t: w * t)
            sde = cm.SDE(lambda x, t: -x, g, state_dependent=dependent)
            return solver(sde, x, T, seed=1)

        assert torch.autograd.gradcheck(run, (weight,))


@pytest.mark.parametrize("solver", [stochastic_heun, sra1, predictor_corrector])
def test_models_that_return_their_input_or_a_view_of_it(solver):
    x = latent(torch.float32, (4, 6, 6))
    view = VP.reverse(lambda x, t: x.transpose(1, 2))
    expected = solver(VP.reverse(lambda x, t: x.transpose(1, 2).clone()), x, T, seed=1)
    assert torch.equal(solver(view, x, T, seed=1), expected)
    same = solver(VP.reverse(lambda x, t: x.clone()), x, T, seed=1)
    assert torch.equal(solver(VP.reverse(lambda x, t: x), x, T, seed=1), same)


def test_a_diffusion_that_is_its_input():
    x = latent(torch.float32, (4, 6))
    view = cm.SDE(lambda x, t: -x, lambda x, t: x, state_dependent=True)
    copied = cm.SDE(lambda x, t: -x, lambda x, t: x.clone(), state_dependent=True)
    for solver in (milstein, stochastic_heun):
        assert torch.equal(solver(view, x, T, seed=1), solver(copied, x, T, seed=1))


def test_first_bad_output_is_named_with_its_own_time():
    def broken(x, t):
        y = -x
        if t[0] < 0.55:
            y[3, 0] = NAN
        return y

    x = latent()
    bad = VP.reverse(broken)
    for solver, place in (
        (milstein, "step 2, t 0.5, sample 3"),
        (stochastic_heun, "step 1, t 0.5, sample 3"),
        (predictor_corrector, "step 1, t 0.5, sample 3"),
        (sra1, "step 2, t 0.5, sample 3"),
    ):
        with pytest.raises(ValueError, match=f"sde must give finite values.*{place}"):
            solver(bad, x, T, check_nan=True, seed=1)


@pytest.mark.parametrize("solver", [milstein, stochastic_heun, sra1, predictor_corrector])
def test_signatures_show_the_shared_options(solver):
    names = set(inspect.signature(solver).parameters)
    assert {"seed", "noise_sampler", "callback", "trajectory", "check_nan"} <= names
    with pytest.raises(TypeError, match=rf"{solver.__name__}\(\) got an unexpected keyword"):
        solver(REVERSE, latent(), T, sead=1)


def test_extra_args_reach_the_model():
    seen = []

    def score(x, t, *, label):
        seen.append((tuple(t.shape), round(t[0].item(), 6), label))
        return -x

    for solver, nodes in (
        (stochastic_heun, [t for pair in pairwise(T) for t in pair]),
        (sra1, [v for t, u in pairwise(T) for v in (t, t + 0.75 * (u - t))]),
        (predictor_corrector, [t for pair in pairwise(T) for t in pair]),
    ):
        seen.clear()
        solver(VP.reverse(score), latent(), T, seed=1, extra_args={"label": 3})
        assert seen == [((5,), round(t, 6), 3) for t in nodes]


# --- bad input -----------------------------------------------------------------------------------

SOLVERS = {
    "milstein": milstein,
    "stochastic_heun": stochastic_heun,
    "sra1": sra1,
    "predictor_corrector": predictor_corrector,
}
BAD = []


def add(what, call, error, text):
    BAD.append(pytest.param(call, error, text, id=what))


for name, solver in SOLVERS.items():
    for what, bad, error, text in (
        ("turning", [0.9, 0.1, 0.5], ValueError, "ts must be strictly ascending or strictly desc"),
        ("one", [0.5], ValueError, "ts must have at least 2 entries; got 1"),
        ("nan", torch.tensor([1.0, NAN]), ValueError, "ts must be finite"),
        ("integers", torch.tensor([1, 0]), TypeError, "ts must be floating"),
    ):
        add(f"{name}-ts-{what}", lambda x, f=solver, t=bad: f(REVERSE, x, t), error, text)
    for what, options, error, text in (
        ("seed", {"seed": 1.5}, TypeError, "seed must be an int"),
        ("callback", {"callback": 3}, TypeError, "callback must be callable; got 3"),
        ("noise", {"noise_sampler": 3}, TypeError, "noise_sampler must be callable; got 3"),
        ("extra", {"extra_args": [1]}, TypeError, "extra_args must be None or a dict"),
        ("progress", {"progress": 1}, TypeError, "progress must be True or False; got 1"),
        ("info", {"return_info": "y"}, TypeError, "return_info must be True or False"),
        ("nan", {"check_nan": None}, TypeError, "check_nan must be True or False"),
        ("trajectory", {"trajectory": [0.4]}, ValueError, "trajectory must hold levels that"),
        ("trajectory kind", {"trajectory": "all"}, TypeError, "trajectory must be"),
        (
            "noise shape",
            {"noise_sampler": lambda a, b: torch.ones(2)},
            ValueError,
            "noise_sampler must return the shape of x",
        ),
    ):
        add(f"{name}-{what}", lambda x, f=solver, o=options: f(REVERSE, x, T, **o), error, text)
    for what, make, error, text in (
        ("a list", lambda x: [1.0], TypeError, "x must be a torch.Tensor"),
        ("integers", lambda x: x.long(), TypeError, "x must be float64, float32"),
        ("no batch", lambda x: x[0, 0], ValueError, "x must have a batch dimension"),
    ):
        add(f"{name}-x-{what}", lambda x, f=solver, m=make: f(REVERSE, m(x), T), error, text)
    for what, score, error, text in (
        ("none", lambda x, t: None, TypeError, "score must return a torch.Tensor"),
        ("shape", lambda x, t: x[:, :2], ValueError, "score must return the shape of x, [4, 3]"),
        ("higher", lambda x, t: x.double(), TypeError, "score must return the dtype of x"),
    ):
        call = lambda x, f=solver, s=score: f(VP.reverse(s), x, T)
        add(f"{name}-score-{what}", call, error, text)
    add(f"{name}-sde", lambda x, f=solver: f(3, x, T), TypeError, "sde must")


def state(g, **options):
    return cm.SDE(lambda x, t: -x, g, state_dependent=True, **options)


for what, call, error, text in (
    (
        "derivative kind",
        lambda x: state(lambda x, t: x, diffusion_derivative=3),
        TypeError,
        "diffusion_derivative must be callable; got 3",
    ),
    (
        "derivative shape",
        lambda x: milstein(state(lambda x, t: x, diffusion_derivative=lambda x, t: x[:2]), x, T),
        ValueError,
        "diffusion_derivative must return the shape of x, [4, 3]",
    ),
    (
        "derivative nan",
        lambda x: milstein(state(lambda x, t: x, diffusion_derivative=lambda x, t: NAN), x, T),
        ValueError,
        "diffusion_derivative must be a number; got nan",
    ),
    (
        "not diagonal",
        lambda x: milstein(state(lambda x, t: x.norm(dim=1)), x, T),
        ValueError,
        "diffusion must return the shape of x, [4, 3], where it reads the state (diagonal noise)",
    ),
    (
        "diffusion kind",
        lambda x: milstein(state(lambda x, t: x.long()), x, T),
        TypeError,
        "diffusion must return a floating tensor",
    ),
    (
        "sra1 state",
        lambda x: sra1(OWN, x, T),
        ValueError,
        "sra1 needs additive noise; got an sde with state_dependent = True",
    ),
    (
        "area kind",
        lambda x: sra1(REVERSE, x, T, area_sampler=1),
        TypeError,
        "area_sampler must be callable; got 1",
    ),
    (
        "area shape",
        lambda x: sra1(REVERSE, x, T, area_sampler=lambda a, b: torch.ones(2)),
        ValueError,
        "area_sampler must return the shape of x, [4, 3]",
    ),
):
    add(what, call, error, text)

for what, options, error, text in (
    (
        "predictor",
        {"predictor": "heun"},
        ValueError,
        "predictor must be one of 'reverse_diffusion'",
    ),
    ("predictor kind", {"predictor": 3}, TypeError, "predictor must be a str; got 3"),
    (
        "variance",
        {"variance": "none"},
        ValueError,
        "variance must be one of 'posterior', 'forward'",
    ),
    ("steps", {"corrector_steps": -1}, ValueError, "corrector_steps must be at least 0; got -1"),
    ("steps kind", {"corrector_steps": 1.0}, TypeError, "corrector_steps must be an int; got 1.0"),
    ("snr", {"snr": 0.0}, ValueError, "snr must be positive; got 0"),
    ("snr nan", {"snr": NAN}, ValueError, "snr must be a number; got nan"),
    ("denoise", {"denoise": 1}, TypeError, "denoise must be True or False; got 1"),
):
    call = lambda x, o=options: predictor_corrector(REVERSE, x, T, **o)
    add(f"predictor_corrector-{what}", call, error, text)
for what, sde, ts, options, error, text in (
    ("forward", REVERSE, T[::-1], {}, ValueError, "ts must be strictly descending; got 0.3 after"),
    ("user's", OWN, T, {}, TypeError, "sde must be process.reverse(score)"),
    (
        "ode",
        VP.probability_flow(lambda x, t: x),
        T,
        {"predictor": "ancestral"},
        ValueError,
        'predictor must be "reverse_diffusion" or "euler_maruyama" for an ODE',
    ),
    ("zero", REVERSE, [1.0, 0.0], {}, ValueError, "ts must lie where alpha and sigma are positive"),
    (
        "negative",
        REVERSE,
        [1.0, -0.005],
        {"corrector_steps": 0},
        ValueError,
        "ts must lie where alpha and sigma are positive",
    ),
    (
        "rising",
        REVERSE,
        [0.1, -0.5],
        {},
        ValueError,
        "ts must lead to lower noise (sigma / alpha); it does not fall from t = 0.1 to -0.5",
    ),
):
    call = lambda x, s=sde, t=ts, o=options: predictor_corrector(s, x, t, **o)
    add(f"predictor_corrector-{what}", call, error, text)


@pytest.mark.parametrize("call, error, text", BAD)
def test_bad_input_is_refused_by_name(call, error, text):
    x = latent(torch.float32, (4, 3))
    before = x.clone()
    with pytest.raises(error) as caught:
        call(x)
    assert text in str(caught.value) and type(caught.value) is error
    assert torch.equal(x, before)
