"""Bad input to the adaptive solvers: one typed error that names the argument, nothing written."""

import math

import pytest
import torch

import cmsolvers as cm
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.solvers import adaptive_sde, dpm_adaptive, rk_pf_ode

DATA = Gaussian(0.5)
SIGMAS = [10.0, 1.0, 0.1]
OU = cm.SDE(lambda x, t: -x, lambda t: 0.3)


def ode(x, denoiser=DATA, sigmas=SIGMAS, **options):
    return rk_pf_ode(denoiser, x, sigmas, **options)


def dpm(x, denoiser=DATA, sigmas=SIGMAS, **options):
    return dpm_adaptive(denoiser, x, sigmas, **options)


def sde(x, sde=OU, ts=(0.0, 1.0), **options):
    return adaptive_sde(sde, x, ts, **options)


SHARED = [
    ({"rtol": -1e-3}, ValueError, "rtol must not be negative"),
    ({"rtol": "small"}, TypeError, "rtol must be a number"),
    ({"atol": 0.0}, ValueError, "atol must be positive"),
    ({"atol": math.nan}, ValueError, "atol must be a number"),
    ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
    ({"max_steps": 1.5}, TypeError, "max_steps must be an int"),
    ({"mode": "loose"}, ValueError, "mode must be one of 'compact', 'masked'"),
    ({"mode": None}, TypeError, "mode must be a str"),
    ({"check_every": 0}, ValueError, "check_every must be at least 1"),
    ({"extra_args": [1]}, TypeError, "extra_args must be None or a dict"),
    ({"callback": 3}, TypeError, "callback must be callable"),
    ({"progress": 1}, TypeError, "progress must be True or False"),
    ({"return_info": None}, TypeError, "return_info must be True or False"),
    ({"check_nan": "yes"}, TypeError, "check_nan must be True or False"),
    ({"trajectory": [0.37]}, ValueError, "trajectory must hold levels that the run visits"),
    ({"trajectory": "all"}, TypeError, "trajectory must be"),
]
LEVELS = [
    ({"sigmas": [1.0]}, ValueError, "sigmas must have at least 2 levels"),
    ({"sigmas": [1.0, 2.0, 1.5]}, ValueError, "sigmas must be strictly "),
    ({"sigmas": [1.0, -1.0]}, ValueError, "sigmas must not be negative"),
    ({"sigmas": [1.0, 0.0]}, ValueError, "sigmas must have a positive level between"),
    ({"denoiser": 3}, TypeError, "denoiser must be callable"),
    ({"denoiser": lambda x, s: None}, TypeError, "denoiser must return a torch.Tensor"),
    ({"denoiser": lambda x, s: x[:1]}, ValueError, "denoiser must return the shape of x"),
    ({"denoiser": lambda x, s: x.double()}, TypeError, "denoiser must return the dtype of x"),
]
SAFETY = [
    ({"safety": 1.0}, ValueError, "safety must lie in (0, 1)"),
    ({"safety": 0.0}, ValueError, "safety must lie in (0, 1)"),
    ({"first_step": 0.0}, ValueError, "first_step must be positive"),
]
SEEDS = [
    ({"seed": 1.5}, TypeError, "seed must be an int"),
    ({"seed": -1}, ValueError, "seed must lie in"),
    ({"seed": torch.zeros(2, dtype=torch.int64)}, ValueError, "seed must have shape [4]"),
    ({"noise_sampler": 1}, TypeError, "noise_sampler must be callable"),
]
TABLE = [
    *((f, *row) for f in (ode, dpm, sde) for row in SHARED),
    *((f, *row) for f in (ode, dpm) for row in LEVELS),
    *((f, *row) for f in (ode, sde) for row in SAFETY),
    *((f, *row) for f in (dpm, sde) for row in SEEDS),
    (ode, {"method": "euler"}, ValueError, "method must be one of 'heun21', 'bosh32'"),
    (ode, {"method": 5}, TypeError, "method must be a str"),
    (ode, {"coordinate": "t"}, ValueError, "coordinate must be one of 'log_sigma', 'sigma'"),
    (ode, {"pcoeff": -1.0}, ValueError, "pcoeff must not be negative"),
    (ode, {"icoeff": 0.0}, ValueError, "icoeff must be positive"),
    (dpm, {"order": 4}, ValueError, "order must be 2 or 3"),
    (dpm, {"order": True}, ValueError, "order must be 2 or 3"),
    (dpm, {"h_init": 0.0}, ValueError, "h_init must be positive"),
    (dpm, {"dcoeff": -1.0}, ValueError, "dcoeff must not be negative"),
    (dpm, {"icoeff": 0.0}, ValueError, "pcoeff + icoeff + dcoeff must be positive"),
    (dpm, {"accept_safety": 0.0}, ValueError, "accept_safety must lie in (0, 1]"),
    (dpm, {"eta": 1.5}, ValueError, "eta must be in [0, 1]"),
    (dpm, {"s_noise": -1.0}, ValueError, "s_noise must not be negative"),
    (dpm, {"eta": 1.0, "s_noise": -1.0}, ValueError, "s_noise must not be negative"),
    (dpm, {"eta": 1.0, "rtol": -1.0}, ValueError, "rtol must not be negative"),
    (
        dpm,
        {"eta": 1.0, "noise_sampler": lambda a, b: torch.ones(1)},
        ValueError,
        "noise_sampler must return the shape of x",
    ),
    (sde, {"sde": 3}, TypeError, "drift is missing"),
    (
        sde,
        {"sde": cm.SDE(lambda x, t: x, lambda x, t: x, state_dependent=True)},
        ValueError,
        "sde must have a diffusion that does not depend on the state",
    ),
    (sde, {"ts": [0.0, 0.0]}, ValueError, "ts must be strictly ascending or strictly descending"),
    (sde, {"exponent": 0.0}, ValueError, "exponent must be positive"),
]


@pytest.mark.parametrize(
    "run, options, error, text",
    TABLE,
    ids=[f"{f.__name__}-{'-'.join(o)}-{i}" for i, (f, o, _, _) in enumerate(TABLE)],
)
def test_bad_input(run, options, error, text):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    kept, state = x.clone(), torch.get_rng_state()
    with pytest.raises(error) as caught:
        run(x, **options)
    assert text in str(caught.value)
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("run", [ode, dpm, sde])
@pytest.mark.parametrize(
    "x, error, text",
    [
        ([1.0], TypeError, "x must be a torch.Tensor"),
        (torch.tensor(1.0), ValueError, "x must have a batch dimension"),
        (torch.ones(4, dtype=torch.int64), TypeError, "x must be float64"),
        (torch.ones(4, device="meta"), ValueError, "x must be on a device that holds data"),
    ],
)
def test_bad_states(run, x, error, text):
    with pytest.raises(error) as caught:
        run(x)
    assert text in str(caught.value)
