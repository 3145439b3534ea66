"""Calls as they are written elsewhere: the error says what to write here."""

from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import oracles, schedules

D = oracles.Gaussian(0.5).denoiser
X = 80.0 * torch.ones(2, 3)
SIGMAS = cm.karras_sigmas(3)
REVERSE = cm.VP().reverse(cm.VP().score_of(D))

HINTS = {
    "extra_args by position": (
        lambda: cm.dpmpp_2m(D, X, SIGMAS, {"y": 1}),
        "dpmpp_2m() takes denoiser, x and sigmas by position and all others by name; got 4 by "
        "position: the dict of further arguments is extra_args=...",
    ),
    "extra_args and callback by position": (
        lambda: cm.heun_pf_ode(D, X, SIGMAS, {}, None, True),
        "got 6 by position: the dict of further arguments is extra_args=...",
    ),
    "the ends of a grid": (
        lambda: cm.dpm_fast(D, X, 0.1, 10.0, 20),
        "got 5 by position: sigmas is one sequence of levels, the largest first, see karras_sigmas",
    ),
    "of a consistency function": (
        lambda: cm.consistency_sample(D, X, [80.0], {}),
        "consistency_sample() takes f, x and sigmas by position",
    ),
    "of an adaptive solver": (
        lambda: cm.dpm_adaptive(D, X, 0.01, 80.0),
        "dpm_adaptive() takes denoiser, x and sigmas by position and all others by name; got 4",
    ),
    "in time": (
        lambda: cm.euler_maruyama(REVERSE, X, [1.0, 0.1], 5),
        "euler_maruyama() takes sde, x and ts by position and all others by name; got 4 by",
    ),
    "disable": (
        lambda: cm.dpmpp_2m(D, X, SIGMAS, disable=True),
        "dpmpp_2m() got an unexpected keyword argument 'disable': there is no bar unless progress",
    ),
    "device": (lambda: cm.dpmpp_2m(D, X, SIGMAS, device="cpu"), "'device': a run is on the device"),
    "generator": (lambda: cm.ddim(D, X, SIGMAS, generator=None), "'generator': give the torch.Gen"),
    "guidance": (lambda: cm.ddim(D, X, SIGMAS, cfg_scale=3.0), "'cfg_scale': guidance is part of"),
    "another word": (
        lambda: cm.ddim(D, X, SIGMAS, churn=1.0),
        "unexpected keyword argument 'churn': what the model reads besides goes into extra_args",
    ),
    **{
        f"device of {name}": (
            partial(getattr(schedules, name), 5, device="cpu"),
            f"{name}() got an unexpected keyword argument 'device': levels stay on the host",
        )
        for name in schedules.__all__
        if name.endswith(("_sigmas", "_times"))
    },
    "betas by position": (
        lambda: cm.DDPM(torch.linspace(1e-4, 0.02, 500)),
        "num_steps must be an int; got a torch.float32 tensor of shape [500] on cpu: betas are the "
        "schedule, DDPM(500, betas)",
    ),
    "betas in a list": (
        lambda: cm.DDPM([0.1, 0.2]),
        "num_steps must be an int; got an object of type list: betas are the schedule, DDPM(2, be",
    ),
}


@pytest.mark.parametrize("name", HINTS)
def test_hint(name):
    call, text = HINTS[name]
    with pytest.raises(TypeError) as caught:
        call()
    assert text in str(caught.value)


def test_what_the_hints_say_works():
    seen = {}

    def model(x, sigma, **extra):
        seen.update(extra)
        return D(x, sigma)

    sigmas = cm.karras_sigmas(20, 0.1, 10.0)
    assert cm.dpmpp_2m(model, X, sigmas, extra_args={"y": 1}, progress=False).shape == X.shape
    assert seen == {"y": 1}
    betas = torch.linspace(1e-4, 0.02, 500)
    assert torch.equal(cm.DDPM(500, betas).betas, betas.double())
    assert cm.karras_sigmas.__name__ == "karras_sigmas" and "rho" in cm.karras_sigmas.__doc__
