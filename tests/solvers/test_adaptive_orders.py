"""Butcher tableaux, and orders of the adaptive solvers' steps at fixed sizes."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import RK23, RK45

from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine.adaptive import lanes
from cmsolvers.engine.adaptive.method import Model, SampleNoise, Step
from cmsolvers.processes.coordinates import KARRAS
from cmsolvers.solvers.dpm_adaptive import DPMSettings, DPMSolver, _Stages, _third
from cmsolvers.solvers.rk_pf_ode import RungeKutta, RungeKuttaSettings
from cmsolvers.solvers.tableaux import BOSH32, DOPRI54, TABLEAUX, Tableau, rooted_trees
from support.adaptive_cases import GAUSSIAN, START, worst
from support.orders import F64, FIRST, LAST, slope


def test_there_are_as_many_trees_as_there_should_be():
    assert [len(rooted_trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("ours, theirs", [(DOPRI54, RK45), (BOSH32, RK23)])
def test_tables_agree_with_scipy(ours, theirs):
    stages = len(ours.b) - 1
    assert ours.c[:stages] == pytest.approx(theirs.C.tolist(), abs=1e-15)
    for row, full in zip(ours.a, theirs.A.tolist()[1:], strict=False):
        assert row == pytest.approx(full[: len(row)], abs=1e-15)
    assert ours.b[:stages] == pytest.approx(theirs.B.tolist(), abs=1e-15)
    sign = -1 if ours.error[0] * theirs.E[0] < 0 else 1
    assert ours.error == pytest.approx((sign * theirs.E).tolist(), abs=1e-15)


def test_the_last_stage_is_reused_where_it_can_be():
    reuse = {name: table.reuses_last for name, table in TABLEAUX.items()}
    assert reuse == {"heun21": False, "bosh32": True, "dopri54": True, "tsit54": True}


def fields(table):
    return {name: getattr(table, name) for name in Tableau.__dataclass_fields__}


def perturbed(values, i, by=1e-6):
    return tuple(v + by if k == i else v for k, v in enumerate(values))


@pytest.mark.parametrize("table", TABLEAUX.values(), ids=TABLEAUX)
def test_a_wrong_coefficient_is_refused(table):
    for name in ("b", "b_low"):
        for i in range(len(table.b)):
            with pytest.raises(ArithmeticError, match="misses a condition"):
                Tableau(**{**fields(table), name: perturbed(getattr(table, name), i)})
    if table.order > 2:
        for k, row in enumerate(table.a):
            rows = (*table.a[:k], perturbed(row, len(row) - 1), *table.a[k + 1 :])
            with pytest.raises(ArithmeticError, match="misses a condition"):
                Tableau(**{**fields(table), "a": rows})
    with pytest.raises(ArithmeticError, match="higher order"):
        Tableau(**{**fields(table), "embedded_order": table.embedded_order - 1})
    with pytest.raises(ValueError, match="entries"):
        Tableau(**{**fields(table), "b": table.b[:-1]})


# --- orders with fixed steps ---------------------------------------------------------------------


def step_of(steps, x, t, t_next, previous=None):
    """A step of all samples from t to t_next."""
    now = lanes.start(x, t, x.device)
    now.first = steps.model(x, steps.level(now.t))
    now.previous = x if previous is None else previous
    return Step(steps.model, now, torch.full_like(now.t, t_next))


def fixed(steps, x, ts):
    """Steps of given sizes, all accepted."""
    for t, t_next in pairwise(ts):
        x = steps.attempt(step_of(steps, x, t, t_next)).x
        steps.model.forget()
    return x


def order_of(steps, exact, ends, count, start=START):
    """Order by regression over five halvings of count steps."""
    counts = [count * 2**k for k in range(6)]
    first, last = ends
    errors = []
    for n in counts:
        ts = [first + (last - first) * i / n for i in range(n + 1)]
        errors.append(worst(fixed(steps, start, ts), exact))
    return slope(errors, counts)


def on_gaussian(steps, count):
    exact = GAUSSIAN.consistency(START, FIRST, LAST)
    ends = [math.log(s) * (-1 if isinstance(steps, DPMSolver) else 1) for s in (FIRST, LAST)]
    return order_of(steps, exact, ends, count)


def on_cosine(table, log, ends, count):
    """A denoiser whose ODE is dx/dt = x cos t in the coordinate: the slope changes sign."""

    def denoiser(x, sigma):
        s = sigma[:, None]
        return x - x * torch.cos(s.log() if log else s) * (1 if log else s)

    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    exact = x * math.exp(math.sin(ends[1]) - math.sin(ends[0]))
    steps = runge_kutta(table, denoiser, log=log)
    return order_of(steps, exact, ends, count, x)


def runge_kutta(table, denoiser=GAUSSIAN, log=True):
    coordinate = "log_sigma" if log else "sigma"
    settings = RungeKuttaSettings(coordinate=coordinate, rtol=0.0, atol=1.0)
    return RungeKutta(table, Model("denoiser", denoiser, F64), settings)


# Dormand and Prince's leading error happens to be small against the next on the Gaussian.
@pytest.mark.parametrize("name, count", [("heun21", 32), ("bosh32", 32), ("tsit54", 10)])
def test_order_of_each_pair_on_the_gaussian(name, count):
    table = TABLEAUX[name]
    assert on_gaussian(runge_kutta(table), count) == pytest.approx(table.order, abs=0.1)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    "name, ends, count",
    [("heun21", (4, 0.5), 8), ("bosh32", (2.5, 0.5), 16), ("dopri54", (10, 1), 16)],
)
def test_order_of_each_pair_in_both_coordinates(name, ends, count, log):
    table = TABLEAUX[name]
    assert on_cosine(table, log, ends, count) == pytest.approx(table.order, abs=0.1)


def test_a_perturbed_pair_has_not_its_order():
    table = copy.copy(DOPRI54)
    object.__setattr__(table, "b", perturbed(table.b, 3, 1e-3))
    object.__setattr__(table, "a", (*table.a[:-1], table.b[:-1]))
    assert on_cosine(table, True, (10, 1), 16) < 4


def dpm(order, data=GAUSSIAN, **options):
    settings = DPMSettings(order=order, rtol=0.0, atol=1.0, seed=3, **options)
    noise = SampleNoise(settings, START, wanted=settings.eta > 0)
    return DPMSolver(Model("denoiser", data, F64), settings, noise, t_end=0.0)


@pytest.mark.parametrize("order", [2, 3])
def test_order_of_dpm_solver(order):
    assert on_gaussian(dpm(order), 32) == pytest.approx(order, abs=0.1)


DPM_PAIRS = [
    (dpm(order, tolerance=tolerance, eta=eta), order - 1)
    for order in (2, 3)
    for tolerance in ("result", "published")
    for eta in (0.0, 0.5, 1.0)
]


@pytest.mark.parametrize(
    "steps, order", [(runge_kutta(t), t.embedded_order) for t in TABLEAUX.values()] + DPM_PAIRS
)
def test_the_error_estimate_is_of_one_order_more_than_the_comparison(steps, order):
    t = math.log(2.0) * (-1 if isinstance(steps, DPMSolver) else 1)
    sign = 1 if isinstance(steps, DPMSolver) else -1
    sizes = [0.2 * 2.0**-k for k in range(6)]
    errors = [steps.attempt(step_of(steps, START, t, t + sign * h)).error for h in sizes]
    measured = slope([e.max().item() for e in errors], [1 / h for h in sizes])
    assert measured == pytest.approx(order + 1, abs=0.1)


def test_the_estimates_of_dpm_solver_3_vanish_at_different_levels():
    """Their leading terms on N(0, s^2); u = (s / sigma)^2."""
    s, h = 0.5, 4e-3
    steps = dpm(3, Gaussian(s))
    for sigma in (0.05, 0.2, s, 1.0, 3.0):
        step = step_of(steps, START, -math.log(sigma), -math.log(sigma) + h)
        pair, u = _third(_Stages(step, step.h, KARRAS)), (s / sigma) ** 2
        size = START / math.hypot(s, sigma) * sigma * h**3 * u * (1 + u) ** -2.5 / 12
        most = 0.02 * max(2 * u, abs(1 - u)) * size.abs().max()
        assert worst(step.value(pair.low - pair.high), 2 * u * size) < most
        assert worst(step.value(pair.more[0]), (1 - u) * size) < most


def test_the_difference_of_orders_alone_vanishes_in_a_large_step():
    """At some level above s the published estimate is 0 and the error of the result is not."""
    s, h = 0.5, 2.0
    data, x = Gaussian(s), torch.ones(1, 1, dtype=F64)
    steps, seen = dpm(3, data), []
    for sigma in torch.linspace(1.0, 5.0, 200).tolist():
        step = step_of(steps, math.hypot(s, sigma) * x, -math.log(sigma), -math.log(sigma) + h)
        pair = _third(_Stages(step, step.h, KARRAS))
        exact = data.consistency(step.value(step.x), sigma, sigma * math.exp(-h))
        wrong = (step.value(f).item() for f in (pair.low - pair.high, pair.more[0]))
        seen.append((*wrong, (step.value(pair.high) - exact).item()))
    published, more, true = torch.tensor(seen, dtype=F64).abs().T
    assert (published / true).min() < 0.1, "the control"
    assert (torch.maximum(published, more) / true).min() > 1.5
