"""Numbers that no float holds, or whose squares overflow: an error by name, or the right value."""

import inspect

import pytest
import torch

import cmsolvers as cm
from cmsolvers import checks, ops, schedules, training
from cmsolvers.denoisers import EDM, ConsistencyFunction, clipped
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine import Option, catalogue, solver
from support.formulas import sampler_of

F64 = torch.float64
HUGE, LONG = 10**400, 10**5000  # Python prints no int of more than 4,300 digits
LEVELS, TIMES = [10.0, 3.0, 1.0, 0.3, 0.1], [1.0, 0.7, 0.4, 0.1]
X = torch.ones(2, 3, dtype=F64)
DATA, VP = Gaussian(0.5), cm.VP()
SDE = VP.reverse(VP.score_of(DATA))


def run(name, grid=None, **options):
    if name == "restart":
        options = {"restarts": [(0.5, 3.0, 2, 1)], **options}
    if catalogue.SOLVERS[name].space == "sigma":
        return getattr(cm, name)(DATA, X, grid or LEVELS, seed=1, **options)
    if catalogue.SOLVERS[name].space == "map":
        return getattr(cm, name)(lambda x, t, s: x, X, grid or LEVELS, seed=1, **options)
    return getattr(cm, name)(SDE, X, grid or TIMES, seed=1, **options)


NUMBERS = [
    (name, option.name)
    for name in catalogue.SOLVERS
    for option in inspect.signature(getattr(cm, name)).parameters.values()
    if type(option.default) is float
]


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_options_that_no_float_holds_are_refused(name, option):
    for value, digits in ((HUGE, 401), (LONG, 5001)):
        with pytest.raises(ValueError, match=rf"^{option}.* must .*about {digits} digits"):
            run(name, **{option: value})
    with pytest.raises(ValueError, match=rf"^{option}.* must .*about 401 digits, negative"):
        run(name, **{option: -HUGE})


def test_there_are_enough_options():
    assert len(NUMBERS) > 50 and {"eta", "s_noise", "s_churn", "rho", "rtol"} <= {
        option for _, option in NUMBERS
    }


@pytest.mark.parametrize("name", catalogue.SOLVERS)
def test_levels_and_times_that_no_float_holds_are_refused(name):
    word = {"sigma": "sigmas", "map": "times", "time": "ts"}[catalogue.SOLVERS[name].space]
    with pytest.raises(ValueError, match=rf"^{word}\[0\] must be a number that float64 holds"):
        run(name, [HUGE, 0.5, 0.1])


OF_ETA = [name for name, option in NUMBERS if option == "eta"]
DOWN_UP = ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"]


@pytest.mark.parametrize("name", DOWN_UP)
@pytest.mark.parametrize("value", [1e155, 1e300])
def test_squares_of_a_large_eta_do_not_overflow(name, value):
    """Once a step adds all of its noise there is no more to add."""
    assert torch.equal(run(name, eta=value), run(name, eta=50.0))


@pytest.mark.parametrize("name", [name for name in OF_ETA if name not in DOWN_UP])
@pytest.mark.parametrize("value", [1e155, 1e300])
def test_a_large_eta_is_finite_or_refused_by_name(name, value):
    try:
        assert run(name, eta=value).isfinite().all()
    except ValueError as error:
        assert str(error).startswith("eta must be in [0, 1")


@pytest.mark.parametrize("value", [1e155, 1e300])
def test_squares_of_a_large_ratio_are_refused(value):
    with pytest.raises(ValueError, match=r"^snr must be in \[0, 1e\+50\]; got 1e\+"):
        run("predictor_corrector", snr=value)


def test_a_formula_whose_weights_overflow_names_its_options(monkeypatch):
    monkeypatch.setattr(catalogue, "SOLVERS", dict(catalogue.SOLVERS))

    @solver(order="1", nfe="n", source="none", options=[Option("gain", 1.0, checks.finite, "g")])
    def squared(step, gain):
        """Euler's step, and a zero that costs a square."""
        zero = 0.0 * gain**2
        d = step.slope(step.x, step.sigma)
        return step.x + (step.to - step.sigma + zero) * d

    assert squared(DATA, X, LEVELS).isfinite().all()
    text = r"^step 0 of squared: options must be .* float64 holds the weights.*got gain = 1e\+200"
    with pytest.raises(ValueError, match=text):
        squared(DATA, X, LEVELS, gain=1e200)


def test_formulas_without_options_are_named_alone():
    def broken(step):
        return step.x * 10.0**400

    with pytest.raises(ValueError, match=r"step 0 of broken: options must.*got none"):
        sampler_of(broken)(DATA, X, LEVELS)


CALLS = {
    "weights": lambda v: ops.weighted_step(X, (X,), (v, 1.0)),
    "w_z": lambda v: ops.weighted_step(X, (X,), (1.0, 1.0), w_z=v, seed=1),
    "x0": lambda v: ops.weighted_step(X, (X,), (1.0, 1.0), x0=(v, 1.0)),
    "second": lambda v: ops.weighted_step(X, (X,), (1.0, 1.0), second=v),
    "clamp": lambda v: ops.weighted_step(X, (X,), (1.0, 1.0), clamp=(0, v)),
    "c_in": lambda v: ops.scale_input(X, v),
    "sigma": lambda v: ops.pf_ode_step(X, X, v, 1.0),
    "sigma_next": lambda v: ops.heun_step(X, X, 1.0, v, X),
    "sigma_data": lambda v: ops.edm_output(X, X, 1.0, v),
    "sigma_min": lambda v: ops.consistency_output(X, X, 1.0, sigma_min=v),
    "dt": lambda v: ops.euler_maruyama_step(X, X, 1.0, v, seed=1),
    "sigma of a denoiser": lambda v: EDM(lambda x, c: x)(X, v),
    "sigma of a function": lambda v: ConsistencyFunction(lambda x, c: x)(X, v),
    "sigma_data of a denoiser": lambda v: EDM(lambda x, c: x, v),
    "high": lambda v: clipped(DATA, 0.0, v),
    "rho": lambda v: schedules.karras_sigmas(5, rho=v),
    "sigma_max": lambda v: schedules.exponential_sigmas(5, sigma_max=v),
    "lr": lambda v: training.TrainingSettings(5, lr=v),
    "decay": lambda v: training.EMA(torch.nn.Linear(1, 1), v),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_numbers_that_no_float_holds_are_refused(name):
    for value in (HUGE, LONG):
        with pytest.raises(ValueError, match=rf"^{name.split()[0]} must be a number that float64"):
            CALLS[name](value)


def test_long_ints_in_errors_are_counted_not_printed():
    for value, shown in (
        (10**19, "10000000000000000000"),
        (10**20, "an int of about 21 digits"),
        (LONG, "an int of about 5001 digits"),
        (-LONG, "an int of about 5001 digits, negative"),
    ):
        with pytest.raises(ValueError, match=rf"got {shown}$"):
            checks.count("n", value, most=4) if value > 0 else checks.count("n", value)
        assert checks.describe(value) == shown
    with pytest.raises(ValueError, match="order must be 2 or 3; got an int of about 5001 digits"):
        cm.dpm_adaptive(DATA, X, LEVELS, order=LONG)
    assert checks.describe(True) == "True"
