"""The multistep solvers: their weights, controls that must fail, orders on other grids."""

import math
from functools import partial
from itertools import zip_longest

import pytest
import torch

import cmsolvers as cm
from cmsolvers.denoisers import EDM
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine.forms import weighed
from cmsolvers.engine.symbols import Past
from cmsolvers.solvers import exponential
from cmsolvers.solvers.dpmpp_sde import multistep
from cmsolvers.solvers.unipc import corrector, predictor
from support.formulas import changed, formula_of, moved, sampler_of
from support.launches import counted_launches
from support.orders import (
    F64,
    PROBLEMS,
    SOFT_STEPS,
    STEPS,
    assert_order,
    each_problem,
    errors_of,
    grid,
    soft_grid,
)

# --- the exponential integrator ----------------------------------------------------------------


@pytest.mark.parametrize("z", [1e-9, 1e-4, 0.3, 0.999, 1.0, 2.5, 40.0, -1e-9, -0.7, -1.0, -12.0])
def test_moments_to_the_last_digits(z):
    """Against the power series of e^{z u} u^k, all terms of one sign, in exact sums."""
    for k, got in enumerate(exponential.moments(z, 4)):
        if z > 0:  # e^-z z int e^{z u} u^k
            terms = (z**j / math.factorial(j) / (k + j + 1) for j in range(160))
            exact = math.exp(-z) * z * math.fsum(terms)
        else:  # z sum (-z)^j k! / (k + j + 1)!
            terms = [z / (k + 1)]
            for j in range(1, 160):
                terms.append(terms[-1] * -z / (k + j + 1))
            exact = math.fsum(terms)
        assert got == pytest.approx(exact, rel=4e-15)


def test_weights_integrate_polynomials_exactly():
    nodes, z = [0.0, -0.8, -2.1, 1.0], 0.6
    found = exponential.weights(z, nodes)
    for degree, moment in enumerate(exponential.moments(z, 4)):
        got = math.fsum(w * u**degree for w, u in zip(found, nodes, strict=True))
        assert got == pytest.approx(moment, rel=1e-13)
    assert math.fsum(found) == pytest.approx(-math.expm1(-z), rel=1e-14)


# --- controls: the rows still sum to 1 and keep the spread --------------------------------------


def to_the_present(step, row):
    """Some of the last weight on past outputs goes to the output now."""
    past = [s for s in row.terms if isinstance(s, Past)]
    return moved(row, 0.1, past[-1], step.traced.asks[0]) if past else row


def sde_2m(midpoint):
    return lambda step: multistep(step, 0.0, 2, midpoint=midpoint)


@each_problem
@pytest.mark.parametrize(
    "formula",
    [
        formula_of(cm.dpmpp_2m),
        sde_2m(True),
        sde_2m(False),
        formula_of(cm.unipc, order=1, variant="bh1"),
        formula_of(cm.unipc, order=1, variant="bh2"),
    ],
    ids=["2m", "sde-midpoint", "sde-heun", "unipc-bh1", "unipc-bh2"],
)
def test_moving_weight_to_the_present_fails(formula, problem):
    wrong = sampler_of(changed(formula, to_the_present), noise="Brownian")
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors_of(wrong, problem), 2)


def test_half_of_the_second_difference_fails():
    """What some published code does in 3M: order 2 is left, and the test for 3 sees it."""

    def parabola(step, share=1.0):
        outputs = [step.D(step.x, step.sigma)]
        h, nodes = exponential.steps_back(step.levels, step.to, 3)
        outputs += [step.past(k) for k in range(1, len(nodes))]
        rows = exponential.weights(h, nodes), exponential.weights(h, nodes[:2])
        row = [share * a + (1 - share) * b for a, b in zip_longest(*rows, fillvalue=0.0)]
        return math.exp(-h) * step.x + weighed(row, outputs)

    def errors(share):
        sampler = sampler_of(lambda step: parabola(step, share))
        return errors_of(sampler, PROBLEMS["mixture"], SOFT_STEPS, soft_grid)

    assert_order(errors(1.0), 3, SOFT_STEPS)
    half = errors(0.5)
    assert_order(half, 2, SOFT_STEPS)
    with pytest.raises(AssertionError, match="order"):
        assert_order(half, 3, SOFT_STEPS)


@each_problem
@pytest.mark.parametrize("order", [1, 2])
def test_unipc_without_its_corrector_loses_an_order(order, problem):
    def alone(step):
        outputs = [step.D(step.x, step.sigma)]
        outputs += [step.past(k) for k in range(1, min(order, step.index + 1))]
        row = predictor(step.levels, step.to, order, "bh2")
        return step.to / step.sigma * step.x + weighed(row, outputs)

    errors = errors_of(sampler_of(alone), problem)
    assert_order(errors, order)
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors, order + 1)


def test_weights_of_an_even_grid_in_deis_fail():
    sampler = partial(cm.ipndm, order=3)
    errors = errors_of(sampler, PROBLEMS["gaussian"], SOFT_STEPS, soft_grid)
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors, 3, SOFT_STEPS)


# --- iPNDM on an even grid ----------------------------------------------------------------------

HIGH, LOW = 10.0, 2.0


def flat_start(x, sigma):
    """D of sigma alone, constant to the sixth order at the start: low first orders cost nothing."""
    return ((1 - sigma / HIGH) ** 6).reshape(-1, 1) + 0 * x


def even_errors(order, steps):
    x = torch.tensor([[3.0], [-7.0]], dtype=F64)
    # d(x / sigma)/dsigma = -D / sigma^2
    powers = [math.comb(6, k) * (-1 / HIGH) ** k for k in range(7)]
    integral = sum(
        c * (math.log(HIGH / LOW) if k == 1 else (HIGH ** (k - 1) - LOW ** (k - 1)) / (k - 1))
        for k, c in enumerate(powers)
    )
    exact = LOW * (x / HIGH + integral)
    levels = [torch.linspace(HIGH, LOW, n + 1, dtype=F64) for n in steps]
    return [(cm.ipndm(flat_start, x, s, order=order) - exact).abs().max() for s in levels]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_its_order_on_an_even_grid(order):
    steps = (96, 192, 384, 768, 1536, 3072) if order == 4 else STEPS
    errors = even_errors(order, steps)
    assert_order(errors, order, steps)
    with pytest.raises(AssertionError, match="order"):
        assert_order(errors, order + 1, steps)


def test_ipndm_of_order_three_has_order_two_on_other_grids():
    errors = errors_of(lambda *a: cm.ipndm(*a, order=3), PROBLEMS["gaussian"])
    assert_order(errors, 2)


# --- levels that nearly coincide, dtypes that change, buffers ---------------------------------

MULTISTEP = (cm.lms, cm.deis, cm.ipndm, cm.dpmpp_2m, cm.unipc, cm.dpmpp_3m_sde)


@pytest.mark.parametrize("sampler", MULTISTEP)
@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7])
def test_past_levels_that_nearly_coincide(sampler, gap):
    """Merged schedules have them; weights as large as 1/gap^2 on the past must still add up.

    In sigma itself they also multiply the rounding errors of the states.
    """
    tolerance = 1e-13 / gap**2 if sampler is cm.lms else 1e-6
    x = torch.tensor([[3.0], [-7.0]], dtype=F64)
    for middle in ((5.0, 5.0 * (1 - gap)), (5.0, 5.0 * (1 - gap), 5.0 * (1 - 2.5 * gap))):
        levels = [10.0, *middle, 3.0, 1.0, 0.4, 0.0]
        got = sampler(lambda x, s: torch.ones_like(x), x, levels, seed=1)
        assert (got - 1).abs().max() < tolerance


@pytest.mark.parametrize("sampler", MULTISTEP)
def test_outputs_whose_dtype_changes_from_step_to_step(sampler):
    data, x = Gaussian(0.5, 0.2), 10 * torch.linspace(-1, 1, 12).reshape(4, 3)
    calls = []

    def changing(x, sigma):
        calls.append(1)
        return data(x, sigma).to(torch.float16 if len(calls) % 3 else torch.float32)

    got = sampler(changing, x, grid(8), seed=1)
    torch.testing.assert_close(got, sampler(data, x, grid(8), seed=1), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("sampler", MULTISTEP)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_loop_owns_all_its_buffers(sampler, dtype):
    """What is kept for later steps and what the network is shown lie in buffers of the run."""
    x, unit = torch.ones(4, 6), torch.ones(4, 6)
    net = EDM(lambda x, c: 0.1 * x.sin(), dtype=dtype)
    told = {} if sampler in NO_NOISE else {"noise_sampler": lambda *_: unit}
    with counted_launches() as seen:
        sampler(net, x, grid(12), **told)
    written = [launch.options.get("out") for launch in seen]
    written += [e.options.get("second_out") for e in seen if e.options.get("second") is not None]
    assert all(out is not None for out in written)
    assert len({out.data_ptr() for out in written}) <= 8 < len(written)


NO_NOISE = (cm.lms, cm.deis, cm.ipndm, cm.dpmpp_2m, cm.unipc)


# --- what the families have in common -----------------------------------------------------------


def test_members_that_coincide():
    """2M is the ODE of SDE-2M and UniP-2 (bh2); order 1 of DEIS and iPNDM is Euler's method."""
    data, x, levels = Gaussian(0.5, 0.2), torch.linspace(-9, 12, 6, dtype=F64)[:, None], grid(11)
    two = cm.dpmpp_2m(data, x, levels)
    torch.testing.assert_close(cm.dpmpp_2m_sde(data, x, levels, eta=0.0), two, rtol=1e-12, atol=0)
    euler = cm.euler_pf_ode(data, x, levels)
    for sampler in (cm.deis, cm.ipndm):
        torch.testing.assert_close(sampler(data, x, levels, order=1), euler, rtol=1e-12, atol=0)


def test_variants_of_unipc_differ_only_where_one_coefficient_is_set():
    data, x = Gaussian(0.5, 0.2), torch.linspace(-9, 12, 6, dtype=F64)[:, None]
    for levels in ([10.0, 2.0], [10.0, 2.0, 0.0], [10.0, 2.0, 0.3]):
        one, two = (cm.unipc(data, x, levels, variant=v) for v in ("bh1", "bh2"))
        assert torch.equal(one, two) == (len(levels) == 2 or levels[-1] == 0)
    levels = grid(8).tolist()
    for solved in (predictor, corrector):
        assert solved(levels[:6], levels[6], 3, "bh1") == solved(levels[:6], levels[6], 3, "bh2")


def test_one_evaluation_and_one_launch_a_step():
    """UniPC's corrector costs neither: both are in the predictor's row."""
    x = torch.ones(2, 3)
    for sampler in (cm.dpmpp_2m, cm.unipc, cm.deis, cm.ipndm):
        with counted_launches() as launches:
            _, info = sampler(Gaussian(0.5), x, grid(9), return_info=True)
        assert info.nfe == len(launches) == 9, sampler.__name__


@pytest.mark.parametrize("sampler", [cm.dpmpp_2m, cm.unipc, cm.deis, cm.ipndm])
def test_constant_data_is_reached_over_many_orders_of_magnitude(sampler):
    for levels in ([1e4, 1e-8], [1e4, 9.9e3, 9.89e3, 1e-8, 0.0], [1e4, 1.0, 1e-8, 1e-12]):
        x = torch.linspace(-1e4, 1e4, 5, dtype=F64)[:, None]
        got = sampler(lambda x, s: torch.ones_like(x), x, levels)
        assert (got - 1).abs().max() < 1e-6


@pytest.mark.parametrize("d", [1e-3, 1e-6, 1e-9, 1e-12])
def test_the_logarithm_of_levels_that_nearly_coincide(d):
    """ln((1 + d) b / b) = d - d^2 / 2 + d^3 / 3, to the last digits, in steps both ways.

    A quotient has an error of 1e-16 / d in it.
    """
    for b in (0.3, 1.0, 80.0):
        a = b * (1.0 + d)
        exact = math.log1p((a - b) / b)
        series = d - d * d / 2 + d**3 / 3
        assert exponential.log_ratio(a, b) == pytest.approx(series, rel=4e-16 / d + 1e-9)
        assert exponential.log_ratio(a, b) == pytest.approx(exact, rel=1e-15)
        assert exponential.log_ratio(b, a) == pytest.approx(-exact, rel=1e-14)
    assert exponential.log_ratio(1.0 + 2.0**-20, 1.0) == pytest.approx(
        2.0**-20 - 2.0**-41 + 2.0**-60 / 3, rel=1e-15
    )
    for ratio in (0.3, 0.5, 2.0, 7.0, 8.0):
        assert exponential.log_ratio(ratio, 1.0) == pytest.approx(math.log(ratio), rel=1e-15)
