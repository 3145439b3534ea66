"""Bad input to the t-space solvers: one typed error that names the argument, nothing written."""

# ruff: noqa: E731 - a table binds the variables of its loops as defaults of lambdas

import math

import pytest
import torch

import cmsolvers as cm
from cmsolvers import milstein, predictor_corrector, sra1, stochastic_heun
from cmsolvers.engine import catalogue
from support.sde_cases import OWN, REVERSE, VP, T, latent

NAN = math.nan
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
        ("grad", {"grad": 1}, TypeError, "grad must be True or False; got 1"),
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
        "sde must have a diffusion that does not depend on the state; got one with state_dependent",
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


@pytest.mark.parametrize("name", [n for n, f in catalogue.SOLVERS.items() if f.space == "time"])
def test_a_reverse_sde_goes_back_in_time(name):
    """Forward in time its law grows without bound; an ODE may go both ways."""
    x, p = torch.ones(4, 2), cm.VP()
    reverse, flow = (make(lambda x, t: -x) for make in (p.reverse, p.probability_flow))
    text = r"ts must be strictly descending; got 0\.5 after 0\.3"
    with pytest.raises(ValueError, match=text):
        catalogue.SOLVERS[name].function(reverse, x, [0.3, 0.5], seed=1)
    if name != "predictor_corrector":
        assert catalogue.SOLVERS[name].function(flow, x, [0.3, 0.5], seed=1).isfinite().all()
    assert catalogue.SOLVERS[name].function(reverse, x, [0.5, 0.3], seed=1).isfinite().all()
