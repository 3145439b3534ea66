"""Networks whose dtype changes from call to call, within a step too: values are as returned.

A launch converts what it reads to one dtype, which must be the wide one: each run is compared with
that of a network that rounds its outputs in the same way and then returns them in the dtype of x.
"""

import itertools

import pytest
import torch
from torch import Tensor

import cmsolvers as cm
from cmsolvers import denoisers, noise
from cmsolvers.denoisers import EDM
from cmsolvers.engine import catalogue

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
LEVELS = cm.karras_sigmas(5, 0.05, 10.0)
VP = cm.VP()
PATTERNS = {
    "wide, narrow": (F32, (F32, BF16)),
    "narrow, wide": (F32, (BF16, F32)),
    "two of three": (F32, (F32, F32, F16)),
    "none is that of x": (F32, (BF16, F16)),
    "float64": (F64, (F64, BF16, F32)),
}
SAMPLERS = [
    name
    for name, facts in catalogue.SOLVERS.items()
    if facts.space == "sigma" and name != "consistency_sample"
]


def wave(x: Tensor, c: Tensor, **extra: Tensor) -> Tensor:
    c = c.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return 0.3 * (1.7 * x).sin() + 0.1 * c + sum(extra.values())


def changing(dtypes, *, returned):
    """A network whose k-th output is rounded to dtypes[k], and returned so or as x is."""
    calls = itertools.cycle(dtypes)

    def net(x: Tensor, c: Tensor, **extra: Tensor) -> Tensor:
        out = wave(x, c, **extra).to(next(calls))
        return out if returned else out.to(x.dtype)

    return net


def guided(net, wrap=EDM, **options):
    sides = ({"a": torch.full((4, 3), value)} for value in (0.3, -0.2))
    names = ("conditional", "unconditional")
    return denoisers.guided(wrap(net), 2.0, **dict(zip(names, sides, strict=True)), **options)


KINDS = {
    "callable": lambda net: net,
    "edm": EDM,
    "eps": lambda net: denoisers.from_eps(net, process=VP),
    "clipped": lambda net: denoisers.clipped(EDM(net), -0.4, 0.4),
    "guided": guided,
    "guided in two calls": lambda net: guided(net, batched=False),
    "guided callable": lambda net: guided(net, lambda net: net, batched=False),
    "guided and rescaled": lambda net: guided(net, lambda net: net, batched=False, rescale=0.6),
    "guided by a weaker one": lambda net: denoisers.autoguided(EDM(net), EDM(net, 0.7), 1.5),
}


def both(run, pattern):
    """A run on outputs as they are, and one on outputs in the dtype of x."""
    dtype, dtypes = PATTERNS[pattern]
    x = (10 * noise.normal((4, 3), 1)).to(dtype)
    return [run(changing(dtypes, returned=returned), x) for returned in (True, False)]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_steps_of_outputs_of_several_dtypes(name, pattern):
    for make in (KINDS["callable"], KINDS["edm"]):

        def run(f, x, make=make):
            return getattr(cm, name)(make(f), x, LEVELS, seed=1)

        got, expected = both(run, pattern)
        assert got.dtype is PATTERNS[pattern][0] and torch.equal(got, expected)


@pytest.mark.parametrize("sampler", [cm.heun_pf_ode, cm.dpmpp_sde, cm.unipc])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad", [False, True])
def test_the_same_in_every_kind_of_denoiser(sampler, kind, grad):
    for pattern in PATTERNS:
        got, expected = both(
            lambda f, x: sampler(KINDS[kind](f), x, LEVELS, grad=grad, seed=1), pattern
        )
        assert torch.equal(got, expected), pattern


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("guided")])
def test_direct_calls_of_guided_denoisers(kind):
    for pattern in PATTERNS:
        got, expected = both(lambda f, x: KINDS[kind](f)(x, 2.0), pattern)
        assert torch.equal(got, expected), pattern


@pytest.mark.parametrize("pattern", PATTERNS)
def test_callbacks_see_each_output_as_it_was_returned(pattern):
    """Shown again after the launch that converted it, an output still has its values."""
    runs = []

    def run(f, x):
        seen = []
        runs.append(seen)
        return cm.heun_pf_ode(f, x, LEVELS, callback=seen.append, trajectory=True)

    (_, got), (_, expected) = both(run, pattern)
    assert torch.equal(got.trajectory, expected.trajectory)
    for mine, theirs in zip(*runs, strict=True):
        assert torch.equal(mine["denoised"].to(theirs["x"].dtype), theirs["denoised"])


@pytest.mark.parametrize("sampler", [cm.euler_maruyama, cm.stochastic_heun, cm.sra1])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_steps_in_time(sampler, pattern):
    times = [1.0, 0.7, 0.4, 0.1]

    def run(f, x):
        sde = VP.reverse(VP.score_of(denoisers.from_eps(f, process=VP)))
        return sampler(sde, x / 10, times, seed=1)

    got, expected = both(run, pattern)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["heun_pf_ode", "dpm_2", "dpmpp_2m", "lms"])
def test_rounding_is_seen(name):
    """The negative control: what is compared is not so coarse that it hides the dtype."""
    x = 10 * noise.normal((4, 3), 1)
    got = getattr(cm, name)(EDM(changing((F32, BF16), returned=True)), x, LEVELS)
    for dtypes in ((F32,), (BF16,)):
        other = getattr(cm, name)(EDM(changing(dtypes, returned=True)), x, LEVELS)
        assert not torch.equal(got, other)


@pytest.mark.parametrize("name", ["heun_pf_ode", "dpm_2", "unipc"])
def test_gradients_through_outputs_of_two_dtypes(name):
    """Those of the same network in the dtype of x: a cast has slope 1."""
    gradients = []
    for returned in (True, False):
        weight = torch.tensor(0.7, requires_grad=True)
        net = changing((F32, BF16), returned=returned)
        x = 10 * noise.normal((4, 3), 1)
        got = getattr(cm, name)(
            EDM(lambda x, c, f=net, w=weight: f(w * x, c)), x, LEVELS, grad=True
        )
        gradients.append(torch.autograd.grad(got.square().sum(), weight)[0])
    assert gradients[0] != 0
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)
