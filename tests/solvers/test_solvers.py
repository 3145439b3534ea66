"""Each sampler against an independent transcription of its published algorithm, in float64."""

import math
from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, noise
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.engine import catalogue
from support.algorithms import TABLE
from support.algorithms.restart import restart_algorithm_1
from support.algorithms.row import SEED, Path, fresh
from support.columns import column

F64 = torch.float64
SIGMAS = cm.karras_sigmas(9, 0.01, 20.0)
SHAPE = (5, 2, 4)
MIXTURE = GaussianMixture(
    torch.randn(3, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(1)), [0.2, 0.5, 0.3]
)
each_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def latent():
    return 20 * torch.randn(SHAPE, dtype=F64, generator=torch.Generator().manual_seed(2))


def z(i, x):
    return fresh(x.shape)(i)


def noise_of(row, dtype=F64):
    """(what the sampler is told, what the algorithm draws from)."""
    if not row.path:
        return {"seed": SEED}, fresh(SHAPE)
    path = Path(SHAPE)
    return {"noise_sampler": lambda a, b: path(a, b).to(dtype)}, lambda i, a, b: path(a, b)


def close(got, expected):
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < 1e-10, error


@each_row
def test_a_callable_as_transcribed(row):
    x, levels = latent(), SIGMAS.tolist()
    before = x.clone()
    told, drawn = noise_of(row)
    got, info = row.sampler(MIXTURE, x, SIGMAS, return_info=True, **told, **row.options)
    close(got, row.algorithm(MIXTURE, x, levels, drawn))
    assert info.nfe == row.nfe(9, True)
    assert torch.equal(x, before)


SCHEDULES = [
    SIGMAS.tolist()[:-1],
    [20.0, 0.0],
    [20.0, 3.0],
    [20.0, 1.0, 0.0],
    [20.0, 5.0, 0.5],
    [20.0],
]


@pytest.mark.parametrize(
    "row, levels",
    [(row, levels) for row in TABLE for levels in SCHEDULES if row.single or len(levels) > 1],
    ids=lambda v: v.name if hasattr(v, "name") else f"{len(v)}-to-{v[-1]:g}",
)
def test_other_schedules(row, levels):
    """Those that do not end in zero, and the shortest."""
    told, drawn = noise_of(row)
    got, info = row.sampler(MIXTURE, latent(), levels, return_info=True, **told, **row.options)
    close(got, row.algorithm(MIXTURE, latent(), levels, drawn))
    assert got.isfinite().all()
    assert info.nfe == row.nfe(len(levels) - 1, levels[-1] == 0)


@each_row
def test_seeds_govern_the_noise(row):
    """Same seed, same samples; another seed changes them where there is noise, else nothing."""
    one, two, other = (
        row.sampler(MIXTURE, latent(), SIGMAS, seed=seed, **row.options) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    noisy = row.order is None and catalogue.SOLVERS[row.sampler.__name__].noise != "none"
    assert torch.equal(one, other) != noisy
    key = noise.key(1, 2, offset=3)
    part = row.sampler(MIXTURE, latent()[3:], SIGMAS, seed=key, **row.options)
    close(part, one[3:])


def test_every_solver_has_its_row():
    rows = {row.sampler.__name__ for row in TABLE}
    known = {f.name for f in catalogue.SOLVERS.values() if f.space == "sigma" and not f.adaptive}
    assert rows == known


def wave(x, c, gain=1.0):
    return gain * (x * 1.3).sin() + 0.1 * c.reshape(-1, 1, 1)


def tame(x, c, gain=1.0):
    """A score of a size that scores have; sigma^2 would amplify rounding errors otherwise."""
    return wave(x, 0 * c, gain) / (1 + c**2).reshape(-1, 1, 1)


RAW = {
    "edm": (denoisers.EDM, wave),
    "eps": (partial(denoisers.from_eps, process=cm.Karras()), wave),
    "v": (partial(denoisers.from_v, process=cm.VP()), wave),
    "x0": (partial(denoisers.from_x0, process=cm.Karras()), wave),
    "score": (partial(denoisers.from_score, process=cm.Karras()), tame),
}


@each_row
@pytest.mark.parametrize("kind", RAW)
def test_raw_networks_are_folded_right(row, kind):
    make, net = RAW[kind]
    denoiser = make(net)
    if row.sampler is cm.consistency_sample:
        denoiser = denoisers.ConsistencyFunction(net, sigma_min=row.options.get("sigma_min", 0.002))
    calls = []

    def counting(x, c, **extra):
        calls.append(1)
        return net(x, c, **extra)

    x, levels = latent(), SIGMAS.tolist()
    told, drawn = noise_of(row)
    expected = row.algorithm(lambda x, s: denoiser(x, s, gain=0.8), x, levels, drawn)
    denoiser.net = counting
    args = {"extra_args": {"gain": 0.8}, **told, **row.options}
    got, info = row.sampler(denoiser, x, SIGMAS, return_info=True, **args)
    close(got, expected)
    assert info.nfe == row.nfe(9, True) == len(calls)
    seen = []
    shown = row.sampler(denoiser, x, SIGMAS, callback=seen.append, **args)
    assert torch.equal(shown, got)
    for entry in seen:
        close(entry["denoised"], denoiser(entry["x"], entry["sigma_hat"], gain=0.8))


@each_row
@pytest.mark.parametrize("state, model", [(F64, torch.float32), (torch.float32, torch.float16)])
def test_networks_of_lower_precision(row, state, model):
    def net(x, c, **extra):
        assert x.dtype == model and c.dtype == (F64 if state == F64 else torch.float32)
        return wave(x, c, **extra).to(model)

    make = denoisers.ConsistencyFunction if row.sampler is cm.consistency_sample else denoisers.EDM
    extra = {k: v for k, v in row.options.items() if k == "sigma_min"}
    told, drawn = noise_of(row, state)
    exact = row.algorithm(make(wave, **extra), latent(), SIGMAS.tolist(), drawn)
    x = latent().to(state)
    got = row.sampler(make(net, dtype=model, **extra), x, SIGMAS, **told, **row.options)
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


@pytest.mark.parametrize(
    "diffusion, dependent",
    [
        (lambda t: 0.3, False),
        (lambda t: torch.tensor(0.3, dtype=F64), False),
        (lambda t: 0.3 + t, False),
        (lambda t: column(0.3 + t, 3), False),
        (lambda t: torch.linspace(0.1, 0.8, 8, dtype=F64).reshape(2, 4), False),
        (lambda x, t: 0.2 * x.cos() + column(t, 3), True),
        (lambda x, t: 0.2 * x.square().mean((1, 2)), True),
    ],
)
def test_euler_maruyama_of_any_diffusion(diffusion, dependent):
    sde = cm.SDE(lambda x, t: -x + column(t, 3), diffusion, dependent)
    ts = torch.linspace(0, 1, 11, dtype=F64)
    x = start = latent() / 10
    for i in range(10):
        t = ts[i].expand(5)
        g = diffusion(x, t) if dependent else diffusion(t)
        if isinstance(g, torch.Tensor) and g.ndim == 1:
            g = column(g, 3)
        x = x + 0.1 * (-x + column(t, 3)) + g * math.sqrt(0.1) * z(i, x)
    close(cm.euler_maruyama(sde, start, ts, seed=SEED), x)
    own = cm.euler_maruyama(sde, start, ts, noise_sampler=lambda a, b: z(round(a * 10), start))
    close(own, x)


def test_restart_intervals_below_the_first_level():
    """Nested and repeated ones, t_min between levels; the trajectory holds every state."""
    levels = SIGMAS.tolist()
    loops = [(0.06, 0.3, 3, 2), (0.05, 1.0, 1, 1), (2.0, 5.0, 2, 1)]
    got, info = cm.restart(MIXTURE, latent(), SIGMAS, restarts=loops, seed=SEED, trajectory=True)
    close(got, restart_algorithm_1(MIXTURE, latent(), levels, fresh(SHAPE), restarts=loops))
    near = [min(levels[:-1], key=lambda s, t=t: abs(s - t)) for t in (0.06, 0.05, 2.0)]
    assert info.steps == 9 + 6 + 1 + 2 and info.nfe == 17 + 2 * 9
    assert [info.levels.count(s) for s in near] == [4, 4, 2]
    assert torch.equal(info.trajectory[-1], got) and len(info.trajectory) == info.steps + 1


def test_dpm_fast_spends_what_it_is_given():
    for n in range(1, 12):
        for levels in (cm.karras_sigmas(n), cm.karras_sigmas(n + 1, append_zero=False)):
            x, info = cm.dpm_fast(MIXTURE, latent(), levels, trajectory=True)
            assert info.nfe == n and info.steps == n // 3 + 1 + (n % 3 == 2 and levels[-1] == 0)
            assert set(info.levels) <= set(levels.tolist()) and x.isfinite().all()


@pytest.mark.parametrize("levels", [[1e4, 1e-8], [1e4, 1e-8, 0.0], [1e4, 1.0, 1e-8, 1e-12, 0.0]])
def test_steps_over_many_orders_of_magnitude(levels):
    """Weights must not lose their digits: no step is refused, and constant D is reached.

    Weights of 1e8 on D cancel in dpm_2 there, which leaves 1e-8 of the first level.
    """
    x = 1 + levels[0] * fresh(SHAPE)(99)
    for sampler, options in (
        (cm.dpm_2, {}),
        (cm.dpm_fast, {}),
        (cm.dpm_fast, {"eta": 1.0}),
        (cm.dpm_2_ancestral, {}),
        (cm.dpmpp_2s_ancestral, {}),
        (cm.lms, {}),
        (cm.restart, {}),
        (cm.dpmpp_2m, {}),
        (cm.dpmpp_sde, {}),
        (cm.dpmpp_sde, {"eta": 0.5}),
        (cm.dpmpp_2m_sde, {}),
        (cm.dpmpp_3m_sde, {}),
        (cm.unipc, {}),
        (cm.deis, {}),
        (cm.ipndm, {}),
    ):
        got = sampler(lambda x, s: torch.ones_like(x), x, levels, seed=SEED, **options)
        assert (got - 1).abs().max() < 1e-3


def test_ancestral_of_any_eta():
    """Up to 1 Euler's is DDIM; where all of a step comes back as noise it has one evaluation."""
    for eta in (0.0, 0.4, 1.0):
        close(
            cm.euler_ancestral(MIXTURE, latent(), SIGMAS, eta=eta, seed=SEED),
            cm.ddim(MIXTURE, latent(), SIGMAS, eta=eta, seed=SEED),
        )
    expected = cm.euler_ancestral(MIXTURE, latent(), SIGMAS, eta=50.0, seed=SEED)
    for sampler in (cm.dpm_2_ancestral, cm.dpmpp_2s_ancestral):
        got, info = sampler(MIXTURE, latent(), SIGMAS, eta=50.0, seed=SEED, return_info=True)
        close(got, expected)
        assert info.nfe == 9


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


@pytest.mark.parametrize(
    "name", [f.name for f in catalogue.SOLVERS.values() if f.space == "sigma" and not f.adaptive]
)
@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_a_last_step_to_0_gives_d_at_the_last_level(name, n):
    """For every method and order: whatever else it does, no noise is left in the result."""
    points = torch.tensor([[-0.5, 0.1], [0.7, 0.4], [0.2, -0.6]], dtype=F64)
    answers = []

    def finite(x, sigma):  # the exact denoiser of three points
        apart = (x[:, None] - points).square().sum(2) / (2 * sigma[:, None] ** 2)
        answers.append((sigma[0].item(), torch.softmax(-apart, 1) @ points))
        return answers[-1][1]

    x = 5.0 * noise.normal((40, 2), 3, dtype=F64)
    levels = cm.karras_sigmas(n, 0.01, 5.0)
    sampler = catalogue.SOLVERS[name].function
    orders = {"lms": 4, "deis": 3, "ipndm": 4, "unipc": 3}
    for order in range(1, orders.get(name, 1) + 1):
        options = {"order": order} if name in orders else {}
        y = sampler(finite, x, levels, seed=1, **options)
        level, last = answers[-1]
        assert level == levels[-2].item()
        torch.testing.assert_close(y, last, rtol=0.0, atol=1e-12)
        if n == 9 and name != "consistency_sample":  # D is no consistency function
            assert torch.cdist(y, points).min(1).values.max() < 1e-6  # cdist rounds
