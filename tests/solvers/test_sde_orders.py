"""Strong and weak orders of the t-space solvers, with controls that must fail.

Weak orders are exact: one step of a linear equation is linear in x, so its moments are sums over
unit vectors of noise (additive) or over the nodes of a Gauss-Hermite rule (multiplicative).
"""

import math
from types import SimpleNamespace

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss

import cmsolvers as cm
from cmsolvers import milstein, noise, predictor_corrector, sra1, stochastic_heun
from cmsolvers.denoisers.oracles import Gaussian, GaussianMixture
from cmsolvers.engine import catalogue
from cmsolvers.engine.time_solver import time_solver
from cmsolvers.engine.time_steps import check_formula
from support.orders import F64, FIRST, LAST, assert_order, grid

PATHS, FINE = 10_000, 1024
STEPS = (8, 16, 32, 64, 128, 256)


class Path:
    """Brownian paths on [0, 1] with their integrals: both exact on every interval of the grid."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        h = 1 / FINE
        z, u = torch.randn(2, FINE, PATHS, generator=generator, dtype=F64)
        zero = z.new_zeros(1, PATHS)
        self.w = torch.cat([zero, (math.sqrt(h) * z).cumsum(0)])
        area = 0.5 * h**1.5 * (z + u / math.sqrt(3))  # the integral of W - W(start), a step
        self.j = torch.cat([zero, (area + h * self.w[:-1]).cumsum(0)])

    def _parts(self, t, t_next):
        a, b = round(t * FINE), round(t_next * FINE)
        h = (b - a) / FINE
        increment = self.w[b] - self.w[a]
        return h, increment, self.j[b] - self.j[a] - h * self.w[a]

    def increment(self, t, t_next):
        h, increment, _ = self._parts(t, t_next)
        return increment / math.sqrt(h)

    def area(self, t, t_next):
        """The space-time Levy area over its standard deviation."""
        h, increment, integral = self._parts(t, t_next)
        return (integral / h - increment / 2) / math.sqrt(h / 12)

    def both(self):
        return {"noise_sampler": self.increment, "area_sampler": self.area}


@pytest.fixture(scope="module")
def path():
    return Path()


def at(n):
    return torch.linspace(0, 1, n + 1, dtype=F64)


def start():
    return torch.ones(PATHS, 1, dtype=F64)


def column(sampler):
    return lambda t, t_next: sampler(t, t_next)[:, None]


def strong(solver, sde, exact, steps=STEPS, x=None, **noises):
    noises = {name: column(f) for name, f in noises.items()}
    x = start() if x is None else x
    return [(solver(sde, x, at(n), **noises) - exact).square().mean().sqrt() for n in steps]


MU, NU = 0.5, 0.8
GBM = cm.SDE(lambda x, t: MU * x, lambda x, t: NU * x, state_dependent=True)
BY_HAND = cm.SDE(GBM.drift, GBM.diffusion, True, diffusion_derivative=lambda x, t: NU)


def ito(path):
    return torch.exp(MU - NU**2 / 2 + NU * path.w[-1])[:, None]


def stratonovich(path):
    return torch.exp(MU + NU * path.w[-1])[:, None]


@pytest.mark.parametrize("sde", [GBM, BY_HAND], ids=["autograd", "by hand"])
def test_milstein_has_strong_order_one(path, sde):
    assert_order(strong(milstein, sde, ito(path), noise_sampler=path.increment), 1.0, STEPS)


def test_without_the_milstein_term_the_order_is_one_half(path):
    no_term = cm.SDE(GBM.drift, GBM.diffusion, True, diffusion_derivative=lambda x, t: 0.0)
    steps = (16, 32, 64, 128, 256, 512)
    errors = strong(milstein, no_term, ito(path), steps, noise_sampler=path.increment)
    assert_order(errors, 0.5, steps)
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors, 1.0, steps)


SINH = cm.SDE(lambda x, t: 0.5 * x, lambda x, t: (1 + x * x).sqrt(), state_dependent=True)


def test_milstein_on_a_diffusion_that_is_not_linear(path):
    """x = sinh W: the derivative of the diffusion changes along the path."""
    exact, zero = torch.sinh(path.w[-1])[:, None], torch.zeros(PATHS, 1, dtype=F64)
    errors = strong(milstein, SINH, exact, x=zero, noise_sampler=path.increment)
    assert_order(errors, 1.0, STEPS)


def test_stochastic_heun_has_strong_order_one(path):
    errors = strong(stochastic_heun, GBM, stratonovich(path), noise_sampler=path.increment)
    assert_order(errors, 1.0, STEPS)


def test_stochastic_heun_does_not_converge_to_ito(path):
    errors = strong(stochastic_heun, GBM, ito(path), noise_sampler=path.increment)
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors, 1.0, STEPS)
    assert errors[-1] > 0.5


# --- additive noise: order 1.5 needs the area ----------------------------------------------------

OU = cm.SDE(lambda x, t: -x, lambda t: 0.6)


def exact_ou(path):
    """By parts twice on the fine grid; the rest is far below the errors measured."""
    s = at(FINE)
    growth = torch.exp(s - 1)
    dw, integral = path.w.diff(dim=0), path.j.diff(dim=0) - path.w[:-1] / FINE
    change = growth.diff() * FINE
    terms = growth[1:, None] * dw - change[:, None] * integral
    return (1 / math.e + 0.6 * terms.sum(0))[:, None]


GROWING = cm.SDE(
    lambda x, t: 2 * x / (1 + t.reshape(-1, 1)) + (1 + t.reshape(-1, 1)) ** 2,
    lambda t: (1 + t) ** 2,
)


def exact_growing(path):
    """Kloeden and Platen (1992), section 4.4: x = (1 + t)^2 (x_0 + W + t)."""
    return 4 * (1 + path.w[-1] + 1)[:, None]


WAVY = cm.SDE(lambda x, t: torch.sin(x) - x, lambda t: torch.exp(-0.5 * t))


def fine_wavy(path):
    """The order 1.5 Taylor scheme of Kloeden and Platen (1992), eq. 10.4.5, on the fine grid."""
    x, h = start()[:, 0], 1 / FINE
    dw, integral = path.w.diff(dim=0), path.j.diff(dim=0) - path.w[:-1] / FINE
    for i in range(FINE):
        g, sin = math.exp(-0.5 * i * h), torch.sin(x)
        f, slope = sin - x, torch.cos(x) - 1
        second = f * slope - 0.5 * g * g * sin
        rest = -0.5 * g * (h * dw[i] - integral[i])  # g' times the integral of s dW
        x = x + f * h + g * dw[i] + slope * g * integral[i] + 0.5 * second * h * h + rest
    return x[:, None]


@pytest.fixture(scope="module")
def wavy(path):
    return fine_wavy(path)


@pytest.mark.parametrize("sde, exact", [(OU, exact_ou), (GROWING, exact_growing)])
def test_sra1_on_linear_equations(path, sde, exact):
    """Order 2: what the method leaves out at 1.5 has the second derivative of the drift in it."""
    assert_order(strong(sra1, sde, exact(path), **path.both()), 2.0, STEPS)


def test_sra1_has_strong_order_three_halves(path, wavy):
    assert_order(strong(sra1, WAVY, wavy, **path.both()), 1.5, STEPS)


def test_sra1_without_the_area_has_order_one(path, wavy):
    noises = {"noise_sampler": path.increment, "area_sampler": lambda a, b: 0 * path.w[0]}
    errors = strong(sra1, WAVY, wavy, **noises)
    assert_order(errors, 1.0, STEPS)
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors, 1.5, STEPS)


def test_stochastic_heun_has_strong_order_one_for_additive_noise(path, wavy):
    errors = strong(stochastic_heun, WAVY, wavy, noise_sampler=path.increment)
    assert_order(errors, 1.0, STEPS)


@pytest.mark.parametrize(
    "p", [cm.VP(), pytest.param(cm.SubVP(), marks=pytest.mark.slow)], ids=["VP", "SubVP"]
)
def test_strong_order_of_sra1_on_a_reverse_sde(p, path):
    """Reverse time, drift folded into the step; against the finest grid."""
    data = GaussianMixture([-1.0, 1.0], [0.5, 0.4])
    sde = p.reverse(p.score_of(data))
    x = path.w[FINE // 2][:, None] * math.sqrt(2)

    def place(t):  # ts run from 0.6 to 0.1, the path from 0 to 1; unit normals have no scale
        return round((0.6 - t) / 0.5 * FINE) / FINE

    noises = {
        name: lambda t, t_next, f=f: f(place(t), place(t_next))[:, None]
        for name, f in path.both().items()
    }

    def end(n):
        return sra1(sde, x, torch.linspace(0.6, 0.1, n + 1, dtype=F64), **noises)

    finest, steps = end(FINE), (16, 32, 64, 128, 256)
    errors = [(end(n) - finest).square().mean().sqrt() for n in steps]
    assert_order(errors, 1.5, steps)


# --- weak orders without sampling error ----------------------------------------------------------


def moment_error(solver, growth, n):
    """Error of E[x(1)^2] for the geometric Brownian motion, x' = x M(z) with M at quadrature."""
    nodes, weights = (torch.tensor(v, dtype=F64) for v in hermegauss(20))
    one = torch.ones(20, 1, dtype=F64)
    factor = solver(GBM, one, [0.0, 1 / n], noise_sampler=lambda *_: nodes[:, None])[:, 0]
    second = (weights * factor.square()).sum() / weights.sum()
    return (second**n - math.exp(growth)).abs()


@pytest.mark.parametrize(
    "solver, growth",
    [(milstein, 2 * MU + NU**2), (stochastic_heun, 2 * MU + 2 * NU**2)],
)
def test_weak_order_is_one_for_multiplicative_noise(solver, growth):
    steps = (32, 64, 128, 256, 512, 1024)
    assert_order([moment_error(solver, growth, n) for n in steps], 1.0, steps)
    with pytest.raises(AssertionError, match="order"):
        assert_order([moment_error(solver, 1.01 * growth, n) for n in steps], 1.0, steps)


class OneHot:
    """Noise that makes a linear run show its exact variance: each call has an element alone."""

    def __init__(self, n):
        self.rows = iter(torch.eye(n + 1, dtype=F64)[1:])

    def __call__(self, *_):
        return next(self.rows)


def variance_error(solver, n, draws, **options):
    data, p = Gaussian(0.5), cm.Karras()
    noise = OneHot(draws * n)
    x = torch.zeros(draws * n + 1, dtype=F64)
    x[0] = math.sqrt(FIRST**2 + 0.25)
    if solver is sra1:
        options["area_sampler"] = noise
    end = solver(p.reverse(p.score_of(data)), x, grid(n), noise_sampler=noise, **options)
    return (end.square().sum() - (LAST**2 + 0.25)).abs()


STEPS_WEAK = (32, 64, 128, 256, 512, 1024)


@pytest.mark.parametrize("solver, draws", [(sra1, 2), (stochastic_heun, 1)])
def test_weak_order_is_two_for_linear_equations_with_additive_noise(solver, draws):
    errors = [variance_error(solver, n, draws) for n in STEPS_WEAK]
    assert_order(errors, 2.0, STEPS_WEAK)


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral", "euler_maruyama"])
@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_weak_order_of_the_predictors(predictor, variance):
    """Without corrector; its norms are those of all elements, so no element is alone then."""

    def error(n):
        options = {"predictor": predictor, "variance": variance, "corrector_steps": 0}
        return variance_error(predictor_corrector, n, 1, **options)

    assert_order([error(n) for n in STEPS_WEAK], 1.0, STEPS_WEAK)


# --- ODEs, and tables that are wrong -------------------------------------------------------------


@pytest.mark.parametrize(
    "solver, order", [(cm.euler_maruyama, 1), (milstein, 1), (stochastic_heun, 2), (sra1, 2)]
)
def test_orders_on_the_probability_flow(solver, order):
    p, x = cm.Karras(), FIRST * torch.linspace(-1.5, 2, 8, dtype=F64)[:, None]
    data = Gaussian(0.5, 0.3)
    flow = p.probability_flow(p.score_of(data))
    exact = data.consistency(x, FIRST, LAST)
    errors = [(solver(flow, x, grid(n)) - exact).abs().max() for n in STEPS_WEAK]
    assert_order(errors, order, STEPS_WEAK)


def two_stages(step, node=0.75, share=1 / 3, size=1.0, twice=1.0, power=1):
    """SRA1 where it has no area: Ralston's method, with noise of a size."""
    f = step.drift(step.x, step.t)
    y = step.x + 0.75 * step.dt * f
    f = share * f + 2 / 3 * step.drift(twice * y, step.t + node * step.dt)
    return step.x + step.dt * f + size * step.diffusion(step.x, step.t) ** power * step.W()


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"node": 0.5}, r"weights of the drift must sum to 0\.25 at t = 0\.5"),
        ({"share": 0.3}, r"weights of the drift must sum to 0\.5 at t = 0\.75"),
        ({"twice": 2.0}, r"weights of the state must sum to 1 at t = 0\.625"),
        ({"size": 0.9}, r"must have the variance 1\.53125; .* gives 1\.2403125"),
        ({"power": 0}, r"with the diffusion 1\.75 .* variance 1\.53125; .* gives 0\.5"),
        ({"power": 2}, r"must have the variance 1\.53125; .*drift.* gives 4\.689"),
        ({"size": -1.0}, None),
        ({}, None),
    ],
)
def test_a_formula_checks_itself(wrong, text):
    def formula(step):
        return two_stages(step, **wrong)

    known = dict(catalogue.SOLVERS)
    solver = time_solver(order="", nfe="", source="")(formula)
    catalogue.SOLVERS.clear()
    catalogue.SOLVERS.update(known)
    if text is None:
        check_formula(formula, 1)
        assert solver(OU, start(), [0.0, 1.0], seed=1).isfinite().all()
        return
    with pytest.raises(ArithmeticError, match=text):
        solver(OU, start(), [0.0, 1.0], seed=1)


@pytest.mark.parametrize("solver, exact", [(milstein, ito), (stochastic_heun, stratonovich)])
def test_the_librarys_path_is_kept_when_the_steps_are_halved(solver, exact):
    path, steps = noise.BrownianPath(3, 0.0, 1.0, (PATHS, 1), dtype=F64), (8, 16, 32, 64, 128)
    end = SimpleNamespace(w=path(0.0, 1.0).T)
    errors = [(solver(GBM, start(), at(n), noise_sampler=path.unit) - exact(end)) for n in steps]
    errors = [e.square().mean().sqrt() for e in errors]
    assert_order(errors, 1.0, steps)
    fresh = solver(GBM, start(), at(128), seed=3) - exact(end)
    assert fresh.square().mean().sqrt() > 20 * errors[-1]
