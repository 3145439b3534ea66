"""Orders of convergence by regression over five halvings, with controls that must fail."""

import math
from functools import cache, partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.engine.forms import form_of
from cmsolvers.engine.symbols import Past
from cmsolvers.solvers.ddim import posterior
from cmsolvers.solvers.dpm import dpm_2_step, dpm_3_step
from cmsolvers.solvers.dpmpp import dpmpp_2s_step
from cmsolvers.solvers.euler import euler_step
from cmsolvers.solvers.heun import heun_step
from support.algorithms import TABLE
from support.formulas import changed, formula_of, moved, sampler_of, scaled, traced
from support.orders import (
    F64,
    FIRST,
    LAST,
    PROBLEMS,
    SOFT_STEPS,
    STEPS,
    assert_order,
    each_problem,
    errors_of,
    grid,
    soft_grid,
)

HIGH_ORDER_STEPS = (24, 48, 96, 192, 384, 768)


@each_problem
@pytest.mark.parametrize("row", [r for r in TABLE if r.order], ids=lambda row: row.name)
def test_order_of_the_ode_samplers(row, problem):
    """Ones of high order reach the floor of float64 sooner, so their grids are coarser."""
    steps = row.counts or (STEPS if row.order <= 2 else HIGH_ORDER_STEPS)
    if row.soft_start:
        steps = SOFT_STEPS
    levels = soft_grid if row.soft_start else grid
    errors = errors_of(partial(row.sampler, **row.options), problem, steps, levels)
    assert_order(errors, row.order, steps)


def to_the_end(block):
    """The formula of a block that is told where it ends."""
    return lambda step: block(step, step.to)


@each_problem
def test_dropping_the_corrector_fails(problem):
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors_of(sampler_of(to_the_end(euler_step)), problem), 2)


@each_problem
def test_moving_weight_between_the_slopes_fails(problem):
    """The row still sums to 1 and keeps the spread; only its order is wrong."""

    def wrong(step):
        row = heun_step(step)
        return moved(row, 0.1, *step.traced.asks)

    with pytest.raises(AssertionError, match="order"):
        assert_order(errors_of(sampler_of(wrong), problem), 2)


CONTROL = (2.0, 1.0, 0.5)


def test_flipping_a_coefficient_is_refused_when_built():
    def flipped(step):
        row = heun_step(step)
        last = step.traced.asks[1]
        return row - 2.0 * row.terms[last] * form_of(last)

    with pytest.raises(ArithmeticError, match="sum to 1"):
        traced(flipped, CONTROL)

    def too_wide(step):
        return scaled(posterior(step, 1.0), 2.0)

    with pytest.raises(ArithmeticError, match="spread"):
        traced(too_wide, CONTROL)
    for right in (heun_step, lambda step: posterior(step, 1.0)):
        assert len(traced(right, CONTROL).steps) == 2


@each_problem
@pytest.mark.parametrize("rest", [0, 1])
def test_dpm_fast_loses_an_order_to_a_block_of_order_one(rest, problem):
    counts = [3 * k + rest for k in (32, 64, 128, 256, 512, 1024)]
    assert_order(errors_of(cm.dpm_fast, problem, counts), 2, counts)


def from_last_to_first(step, row):
    """Some of the last weight on D goes to the first: sums and spread stay."""
    first, *_, last = step.traced.asks
    return moved(row, 0.1, last, first) if first is not last else row


@pytest.mark.parametrize("block, order", [(dpm_2_step, 2), (dpmpp_2s_step, 2), (dpm_3_step, 3)])
def test_moving_weight_between_stages_fails(block, order):
    """The same formula unchanged has its order: only the weight that moved takes it away."""
    steps, formula = (16, 32, 64, 128, 256, 512), to_the_end(block)
    assert_order(errors_of(sampler_of(formula), PROBLEMS["gaussian"], steps), order, steps)
    wrong = sampler_of(changed(formula, from_last_to_first))
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors_of(wrong, PROBLEMS["gaussian"], steps), order, steps)


def test_moving_weight_between_past_slopes_fails():
    def wrong(step, row):
        past = [s for s in row.terms if isinstance(s, Past)]
        return moved(row, 0.1, past[1], past[0]) if len(past) == 2 else row

    sampler = sampler_of(changed(formula_of(cm.lms, order=3), wrong))
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors_of(sampler, PROBLEMS["gaussian"], SOFT_STEPS, soft_grid), 3, SOFT_STEPS)


# --- SDEs: strong order on common Brownian paths, weak order on paths and exactly ---------------

PATHS, FINE = 10_000, 1024
SDE_STEPS = (8, 16, 32, 64, 128, 256)


class Brownian:
    """Paths on a fine grid of [0, 1], handed out as unit normals over any coarser interval."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randn(FINE, PATHS, generator=generator, dtype=F64) / math.sqrt(FINE)
        self.w = torch.cat([steps.new_zeros(1, PATHS), steps.cumsum(0)])

    def __call__(self, t, t_next):
        a, b = round(min(t, t_next) * FINE), round(max(t, t_next) * FINE)
        return (self.w[b] - self.w[a]) / math.sqrt(abs(t_next - t))


@pytest.fixture(scope="module")
def brownian():
    return Brownian()


def integrate(sde, x0, n, noise):
    return cm.euler_maruyama(sde, x0, torch.linspace(0, 1, n + 1, dtype=F64), noise_sampler=noise)


OU = cm.SDE(lambda x, t: -x, lambda t: 0.3)
GBM = cm.SDE(lambda x, t: 0.5 * x, lambda x, t: 0.8 * x, state_dependent=True)


def exact_ou(brownian, x0):
    """Integrated by parts: x0 / e + 0.3 (W(1) - int e^(s - 1) W(s) ds)."""
    s = torch.linspace(0, 1, FINE + 1, dtype=F64)
    integral = torch.trapezoid(torch.exp(s - 1)[:, None] * brownian.w, s, dim=0)
    return x0 / math.e + 0.3 * (brownian.w[-1] - integral)


def exact_gbm(brownian, x0):
    return x0 * torch.exp((0.5 - 0.32) + 0.8 * brownian.w[-1])


def start():
    return torch.ones(PATHS, dtype=F64)


def strong_errors(sde, exact, brownian, noise):
    return [(integrate(sde, start(), n, noise) - exact).abs().mean() for n in SDE_STEPS]


def weak_errors(sde, exact, noise):
    """Error of E[x^2]; the common paths take most of the sampling error away."""
    second = exact.square().mean()
    return [(integrate(sde, start(), n, noise).square().mean() - second).abs() for n in SDE_STEPS]


def test_strong_order_is_one_for_additive_noise(brownian):
    errors = strong_errors(OU, exact_ou(brownian, start()), brownian, brownian)
    assert_order(errors, 1.0, SDE_STEPS)


def test_strong_order_is_one_half_for_multiplicative_noise(brownian):
    steps = (16, 32, 64, 128, 256, 512)
    exact = exact_gbm(brownian, start())
    errors = [(integrate(GBM, start(), n, brownian) - exact).square().mean().sqrt() for n in steps]
    assert_order(errors, 0.5, steps)


def test_weak_order_is_one(brownian):
    errors = weak_errors(OU, exact_ou(brownian, start()), brownian)
    assert_order(errors, 1.0, SDE_STEPS)


def test_reusing_the_noise_fails(brownian):
    exact = exact_ou(brownian, start())

    def same(t, t_next):
        return brownian(0.0, t_next - t)

    with pytest.raises(AssertionError, match="order"):
        assert_order(strong_errors(OU, exact, brownian, same), 1.0, SDE_STEPS)
    with pytest.raises(AssertionError, match="order"):
        assert_order(weak_errors(OU, exact, same), 1.0, SDE_STEPS)


def test_wrong_diffusion_fails(brownian):
    wrong = cm.SDE(OU.drift, lambda t: 0.33)
    exact = exact_ou(brownian, start())
    with pytest.raises(AssertionError, match="order"):
        assert_order(strong_errors(wrong, exact, brownian, brownian), 1.0, SDE_STEPS)


@pytest.mark.parametrize("p", [cm.VP(), cm.SubVP()], ids=repr)
def test_strong_order_of_the_reverse_sde(p, brownian):
    """Its diffusion depends on time alone, so the theory says 1; against the finest grid."""
    data = GaussianMixture([-1.0, 1.0], [0.5, 0.4])
    sde = p.reverse(p.score_of(data))
    x = brownian.w[FINE // 2] * math.sqrt(2)

    def at(n):
        ts = torch.linspace(0.5, 0.25, n + 1, dtype=F64)
        noise = lambda t, t_next: brownian(4 * t - 1, 4 * t_next - 1)  # noqa: E731
        return cm.euler_maruyama(sde, x, ts, noise_sampler=noise)

    finest, steps = at(FINE), (4, 8, 16, 32, 64)
    errors = [(at(n) - finest).abs().mean() for n in steps]
    assert_order(errors, 1.0, steps)


class OneHot:
    """Noise that makes a linear run show its exact variance: element 1 + i gets that of step i."""

    def __init__(self, n):
        self.rows = iter(torch.eye(n + 1, dtype=F64)[1:])

    def __call__(self, *_):
        return next(self.rows)


def variance_error(sampler, n):
    data = Gaussian(0.5)
    x = torch.zeros(n + 1, dtype=F64)
    x[0] = math.sqrt(FIRST**2 + 0.25)
    return (sampler(data, x, n, OneHot(n)).square().sum() - (LAST**2 + 0.25)).abs()


def ancestral(data, x, n, noise, eta=1.0):
    return cm.ddim(data, x, grid(n), eta=eta, noise_sampler=noise)


def reverse_sde(data, x, n, noise):
    p = cm.Karras()
    return cm.euler_maruyama(p.reverse(p.score_of(data)), x, grid(n), noise_sampler=noise)


def weak(sampler, **options):
    return lambda data, x, n, noise: sampler(data, x, grid(n), noise_sampler=noise, **options)


def restarted(data, x, n, noise):
    """As many steps in each loop as there are on its levels."""
    loops = [(0.5, 2.0, n // 4, 2), (0.1, 1.0, n // 4, 1)]
    return cm.restart(data, x, grid(n), restarts=loops, noise_sampler=noise)


THIRDS = tuple(3 * 2**k + 2 for k in range(4, 10))
WEAK = {
    "ddim": (ancestral, 1, STEPS),
    "reverse_sde": (reverse_sde, 1, STEPS),
    "euler_ancestral": (weak(cm.euler_ancestral), 1, STEPS),
    "euler_ancestral, eta = 3": (weak(cm.euler_ancestral, eta=3.0), 1, STEPS),
    "dpm_2_ancestral": (weak(cm.dpm_2_ancestral), 2, STEPS),
    "dpm_2_ancestral, eta = 0.5": (weak(cm.dpm_2_ancestral, eta=0.5), 2, STEPS),
    "dpmpp_2s_ancestral": (weak(cm.dpmpp_2s_ancestral), 2, STEPS),
    "dpm_fast, eta = 1": (weak(cm.dpm_fast, eta=1.0), 3, THIRDS),
    "restart": (restarted, 2, STEPS),
}


@pytest.mark.parametrize("sampler, order, steps", WEAK.values(), ids=WEAK)
def test_weak_order_without_sampling_error(sampler, order, steps):
    assert_order([variance_error(sampler, n) for n in steps], order, steps)


@pytest.mark.parametrize("s_noise", [0.99, 1.01])
@pytest.mark.parametrize("name", ["dpm_2_ancestral", "dpmpp_2s_ancestral", "restart"])
def test_weak_order_with_noise_of_a_wrong_size_fails(name, s_noise):
    options = {"restarts": [(0.5, 2.0, 8, 2)]} if name == "restart" else {}
    sampler = weak(getattr(cm, name), s_noise=s_noise, **options)
    with pytest.raises(AssertionError, match="order"):
        assert_order([variance_error(sampler, n) for n in STEPS], 2)


def test_weak_order_with_reused_noise_fails():
    def reused(data, x, n, noise):
        row = noise()
        return cm.ddpm_ancestral(data, x, grid(n), noise_sampler=lambda *_: row)

    with pytest.raises(AssertionError, match="order"):
        assert_order([variance_error(reused, n) for n in STEPS], 1.0)


@pytest.mark.parametrize(
    "sampler, options, order",
    [
        (cm.lms, {"order": 4}, 2),
        (cm.deis, {"order": 3}, 2),
        (cm.unipc, {"order": 3}, 3),
        (cm.dpmpp_3m_sde, {"eta": 0.0}, 2),
    ],
)
def test_orders_where_the_first_steps_are_not_small(sampler, options, order):
    """On an even grid in ln sigma from a level like that of the data: the start decides."""
    steps = (60, 120, 240, 480, 960)
    assert_order([worst_on_even_grid(sampler, n, **options) for n in steps], order, steps)


@pytest.mark.parametrize("rest, order", [(0, 2), (1, 2), (2, 3)])
def test_the_order_of_dpm_fast_depends_on_what_is_left_of_n(rest, order):
    steps = tuple(n + rest for n in (60, 120, 240, 480, 960))
    assert_order([worst_on_even_grid(cm.dpm_fast, n) for n in steps], order, steps)


@cache
def near_data():
    """A problem from a level like that of the data, and its solution."""
    data = GaussianMixture([-1.0, 0.2, 1.1], [0.3, 0.2, 0.4], [0.3, 0.3, 0.4])
    x = 2.0 * torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    return data, x, cm.rk_pf_ode(data, x, [2.0, 0.2], rtol=1e-12, atol=1e-13)


def worst_on_even_grid(sampler, n, **options):
    data, x, exact = near_data()
    levels = torch.exp(torch.linspace(math.log(2.0), math.log(0.2), n + 1, dtype=F64))
    return (sampler(data, x, levels, **options) - exact).abs().max()
