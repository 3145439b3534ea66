"""Samplers whose noise is one Brownian path: strong and weak orders, seeds, the built-in path."""

import math
from itertools import pairwise

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers, noise
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.engine import Form, Step, solver
from cmsolvers.engine.catalogue import SOLVERS
from cmsolvers.engine.path_noise import PathNoise
from support.formulas import formula_of, traced
from support.orders import F64, FIRST, LAST, assert_order, grid

SIGMAS = cm.karras_sigmas(9, 0.01, 20.0)
DATA = GaussianMixture([-1.0, 0.2, 1.1], [0.3, 0.2, 0.4], [0.3, 0.3, 0.4])
SAMPLERS = {
    "sde": (cm.dpmpp_sde, {}),
    "sde, eta = 0.5": (cm.dpmpp_sde, {"eta": 0.5, "r": 0.7}),
    "2m": (cm.dpmpp_2m_sde, {}),
    "2m, heun": (cm.dpmpp_2m_sde, {"solver_type": "heun", "eta": 0.6}),
    "3m": (cm.dpmpp_3m_sde, {}),
}
each_sampler = pytest.mark.parametrize("sampler, options", SAMPLERS.values(), ids=SAMPLERS)


# --- strong order: a finer schedule follows the same path --------------------------------------

STEPS = (32, 64, 128, 256, 512, 1024)


def distances(sampler, steps=STEPS, **options):
    """Mean distance of the samples of n steps from those of 2 n, for each n."""
    x = FIRST * noise.normal((300, 1), 3, dtype=F64)
    runs = [sampler(DATA, x, grid(n), **options) for n in (*steps, 2 * steps[-1])]
    return [(a - b).abs().mean() for a, b in pairwise(runs)]


@each_sampler
def test_the_samples_of_a_seed_converge(sampler, options):
    assert_order(distances(sampler, seed=7, **options), 1.0, STEPS)


@each_sampler
def test_with_fresh_normals_they_do_not(sampler, options):
    draws = iter(range(10**9))

    def fresh(sigma, sigma_next):
        return noise.normal((300, 1), 7, draw=next(draws), dtype=F64)

    with pytest.raises(AssertionError, match="order"):
        assert_order(distances(sampler, noise_sampler=fresh, **options), 1.0, STEPS)


def test_seeds_have_limits_of_their_own():
    x = FIRST * noise.normal((300, 1), 3, dtype=F64)
    one, two = (cm.dpmpp_sde(DATA, x, grid(256), seed=s) for s in (1, 2))
    assert (one - two).abs().mean() > 0.1


# --- weak order, without sampling error ----------------------------------------------------------


STEPS_OF_WEAK = (64, 128, 256, 512, 1024, 2048)


class Unit:
    """A Brownian path as coordinates: each new increment has an element of its own.

    A linear run then shows its exact variance. Queries from one start share what they overlap in.
    """

    def __init__(self, size, nested=True):
        self.rows = iter(torch.eye(size, dtype=F64)[1:])
        self.nested, self.seen = nested, {}

    def __call__(self, sigma, sigma_next):
        span = math.log(sigma / sigma_next)
        inner, w = self.seen.get(sigma, (0.0, 0.0)) if self.nested else (0.0, 0.0)
        w = w + math.sqrt(span - inner) * next(self.rows)
        self.seen[sigma] = (span, w)
        return w / math.sqrt(span)


def variance_errors(sampler, nested=True, **options):
    data, errors = Gaussian(0.5), []
    for n in STEPS_OF_WEAK:
        x = torch.zeros(2 * n + 1, dtype=F64)
        x[0] = math.sqrt(FIRST**2 + 0.25)
        unit = Unit(2 * n + 1, nested)
        y = sampler(data, x, grid(n), noise_sampler=unit, **options)
        errors.append((y.square().sum() - (LAST**2 + 0.25)).abs())
    return errors


@each_sampler
def test_weak_order_is_two(sampler, options):
    assert_order(variance_errors(sampler, **options), 2.0, STEPS_OF_WEAK)


def test_two_unrelated_normals_in_a_step_cost_the_weak_order():
    errors = variance_errors(cm.dpmpp_sde, nested=False)
    assert_order(errors, 1.0, STEPS_OF_WEAK)
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors, 2.0, STEPS_OF_WEAK)


# --- the built-in path ---------------------------------------------------------------------------


def latent(shape=(7, 3, 5, 3), dtype=torch.float32):
    return (20 * noise.normal(shape, 5)).to(dtype)


def net(x, c):
    return 0.3 * (x * 1.7).sin() + 0.1 * c.reshape([-1] + [1] * (x.ndim - 1)).to(x.dtype)


MODEL = denoisers.EDM(net)


@pytest.mark.parametrize("levels", [SIGMAS, SIGMAS[:-1], [20.0, 3.0]], ids=len)
@each_sampler
def test_it_is_the_path_of_the_noise_contract(sampler, options, levels):
    """u = ln(s_0 / sigma) / ln(s_0 / s_n) on [0, 1], deep enough to tell the levels apart."""
    x = latent(dtype=F64)
    ends = [s for s in torch.as_tensor(levels).tolist() if s > 0]
    path = noise.BrownianPath(11, 0.0, 1.0, x.shape, spacing=0.5**15, dtype=F64)

    def place(sigma):
        return min(1.0, math.log(ends[0] / sigma) / math.log(ends[0] / ends[-1]))

    def own(sigma, sigma_next):
        return path.unit(place(sigma), place(sigma_next))

    got = sampler(MODEL, x, levels, seed=11, **options)
    expected = sampler(MODEL, x, levels, noise_sampler=own, **options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_increments_are_independent_unit_normals():
    formula = formula_of(cm.dpmpp_sde, eta=1.0, r=0.5)
    run = traced(formula, (*grid(6).tolist(), 0.0), noise="Brownian")
    path = PathNoise(run, torch.empty(40_000, 2), 3)
    ends = [(step.asks[1].level, step.to) for step in run.steps[:-1]]
    z = [path(step.sigma, e) for step, both in zip(run.steps, ends, strict=False) for e in both]
    covariance = torch.corrcoef(torch.stack(z).reshape(len(z), -1).double())
    nested = torch.kron(torch.eye(6), torch.tensor([[1.0, 0.5**0.5], [0.5**0.5, 1.0]])).double()
    assert (covariance - nested).abs().max() < 5 / math.sqrt(80_000)
    for row in z:
        assert row.mean().abs() < 5 / math.sqrt(80_000)
        assert row.var().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / 80_000))


def test_levels_closer_than_the_tree_resolves():
    """Half a unit in the last place of ln sigma apart, say: no error, finite samples."""
    for s in (3.0, 3.0 - 3e-6, 3.0 - 3e-11, 3e-3):
        levels = [20.0, 3.0, s, math.nextafter(s, 0), 1e-3, 0.0]
        levels = sorted(set(levels), reverse=True)
        for sampler, options in SAMPLERS.values():
            for ends in (levels, levels[:-2]):
                assert sampler(MODEL, latent(), ends, seed=1, **options).isfinite().all()


@each_sampler
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_batch_splits_bit_for_bit(sampler, options, dtype):
    x = latent(dtype=dtype)

    def sample(x, seed):
        return sampler(MODEL, x, SIGMAS, seed=seed, **options)

    whole = sample(x, 11)
    for cut in (1, 4):
        rest = sample(x[cut:], noise.key(11, 7 - cut, offset=cut))
        assert torch.equal(torch.cat([sample(x[:cut], 11), rest]), whole)
    seeds = torch.arange(7, dtype=torch.int64)
    assert torch.equal(sample(x[3:5], seeds[3:5]), sample(x, seeds)[3:5])


@each_sampler
def test_other_layouts_callbacks_and_empty_batches(sampler, options):
    x = latent((7, 3, 5, 6))
    got = sampler(MODEL, x, SIGMAS, seed=3, **options)
    wide = sampler(
        MODEL, x.contiguous(memory_format=torch.channels_last), SIGMAS, seed=3, **options
    )
    assert wide.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(wide, got, rtol=1e-5, atol=1e-5)
    half = sampler(MODEL, x[..., ::2], SIGMAS, seed=3, **options)
    dense = sampler(MODEL, x[..., ::2].contiguous(), SIGMAS, seed=3, **options)
    torch.testing.assert_close(half, dense, rtol=1e-6, atol=1e-6)
    seen = []
    shown = sampler(MODEL, x, SIGMAS, seed=3, callback=seen.append, **options)
    assert torch.equal(shown, got) and len(seen) == 9
    assert sampler(MODEL, x[:0], SIGMAS, seed=3, **options).shape == (0, 3, 5, 6)


@each_sampler
def test_gradients_pass_through(sampler, options):
    x = latent((2, 3), F64).requires_grad_()
    torch.autograd.gradcheck(lambda x: sampler(MODEL, x, SIGMAS, seed=3, grad=True, **options), x)


@pytest.mark.parametrize("sampler", [cm.dpmpp_sde, cm.dpmpp_2m_sde, cm.dpmpp_3m_sde])
def test_the_generator_is_asked_once_and_never_for_an_ode(sampler):
    x = latent()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sampler(MODEL, x, SIGMAS, eta=0.0)
    assert torch.equal(torch.get_rng_state(), before)
    first = sampler(MODEL, x, SIGMAS)
    torch.manual_seed(0)
    assert torch.equal(sampler(MODEL, x, SIGMAS), first)
    torch.manual_seed(0)
    torch.randint(0, 2, (1,))
    assert not torch.equal(sampler(MODEL, x, SIGMAS), first)


def test_a_formula_may_draw_to_a_level_where_it_asks_nothing():
    """Noise to the middle of a step and to its end, D at the start alone."""

    @solver(order="1", nfe="n", source="here", noise="Brownian", keeps_spread=False)
    def halved(step: Step) -> Form:
        """Two increments in a step.

        Source: here.
        """
        s, to = step.sigma, step.to
        if to == 0:
            return step.D(step.x, s)
        d, middle = step.D(step.x, s), math.sqrt(s * to)
        return d + to / s * (step.x - d) + 0.1 * step.z(middle) + 0.1 * step.z()

    try:
        x, levels = latent(), (*grid(6).tolist(), 0.0)
        y = halved(MODEL, x, levels, seed=4)
        assert torch.equal(y, halved(MODEL, x, levels, seed=4))
        run = traced(formula_of(halved), levels, noise="Brownian", keeps_spread=False)
        given = halved(MODEL, x, levels, noise_sampler=PathNoise(run, x, 4))
        torch.testing.assert_close(y, given, rtol=1e-5, atol=1e-5)
    finally:
        del SOLVERS["halved"]
