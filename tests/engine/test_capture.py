"""Captured runs on the CPU: the same object without a graph (test_cuda.py has graphs)."""

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.denoisers.oracles import Gaussian

SIGMAS = cm.karras_sigmas(6, 0.01, 20.0)
VP = cm.VP()
TIMES = torch.linspace(1.0, 0.1, 5)


def net(x, c, label=None, shift=None):
    found = (x * 1.3).sin()
    if label is not None:
        found = found * label[:, None]
    return found if shift is None else found + shift["by"][0]


def x_of(scale=20.0):
    return scale * noise.normal((4, 3), 5)


CASES = {
    "heun": (cm.heun_pf_ode, EDM(net), SIGMAS, {"s_churn": 2.0}),
    "dpmpp_sde": (cm.dpmpp_sde, EDM(net), SIGMAS, {}),
    "unipc": (cm.unipc, EDM(net), SIGMAS, {"order": 2}),
    "consistency": (cm.consistency_sample, ConsistencyFunction(net), [20.0, 1.0], {}),
    "euler_maruyama": (cm.euler_maruyama, VP.reverse(VP.score_of(Gaussian(0.5))), TIMES, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_captured_run_is_the_sampler_to_the_bit(name):
    sampler, model, grid, options = CASES[name]
    run = cm.capture(sampler, model, x_of(), grid, **options)
    other = x_of(3.0)
    for seed in (3, torch.arange(4), torch.Generator().manual_seed(1)):
        again = torch.Generator().manual_seed(1) if isinstance(seed, torch.Generator) else seed
        assert torch.equal(
            run(other, seed=seed), sampler(model, other, grid, seed=again, **options)
        )
    _, info = sampler(model, other, grid, seed=3, return_info=True, **options)
    assert run.nfe == info.nfe
    assert run.sigmas.tolist() == torch.as_tensor(grid).double().tolist()
    assert run.graph is None and run.pool is None


def test_extra_args_are_replaced():
    extra = {"label": torch.ones(4), "shift": {"by": [torch.zeros(())]}}
    run = cm.capture(cm.dpmpp_2m, EDM(net), x_of(), SIGMAS, extra_args=extra)
    new = {"label": torch.tensor([0.0, 1.0, 2.0, 3.0]), "shift": {"by": [torch.tensor(0.3)]}}
    expected = cm.dpmpp_2m(EDM(net), x_of(), SIGMAS, extra_args=new)
    assert torch.equal(run(x_of(), extra_args=new), expected)
    assert not torch.equal(run(x_of()), expected)
    assert torch.equal(run(x_of()), cm.dpmpp_2m(EDM(net), x_of(), SIGMAS, extra_args=extra))


@pytest.mark.parametrize(
    "given, error, text",
    [
        ({"x": torch.ones(2, 3)}, ValueError, r"x must have the shape .* \[4, 3\]; got \[2, 3\]"),
        ({"x": torch.ones(4, 3).double()}, TypeError, "x must have the dtype .*float32"),
        ({"extra_args": {}}, ValueError, r"extra_args\['label'\] is missing"),
        (
            {"extra_args": {"label": torch.ones(4), "scale": 1.0, "more": 1}},
            ValueError,
            r"extra_args\['more'\] is new",
        ),
        (
            {"extra_args": {"label": torch.ones(3), "scale": 1.0}},
            ValueError,
            r"extra_args\['label'\] must be .*\[4\].*as captured; got .*\[3\]",
        ),
        (
            {"extra_args": {"label": 1.0, "scale": 1.0}},
            TypeError,
            r"extra_args\['label'\] must be a tensor, as captured; got 1.0",
        ),
        (
            {"extra_args": {"label": torch.ones(4), "scale": 2.0}},
            ValueError,
            r"extra_args\['scale'\] must be 1.0, as captured; got 2.0",
        ),
        ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\^64\); got -1"),
    ],
)
def test_calls_that_do_not_fit(given, error, text):
    def scaled(x, c, label, scale):
        return net(x, c, label) * scale

    extra = {"label": torch.ones(4), "scale": 1.0}
    run = cm.capture(cm.heun_pf_ode, EDM(scaled), x_of(), SIGMAS, extra_args=extra)
    with pytest.raises(error, match=text):
        run(**{"x": x_of(), "extra_args": extra, **given})


@pytest.mark.parametrize(
    "option",
    [
        {"callback": print},
        {"noise_sampler": lambda a, b: None},
        {"check_nan": True},
        {"progress": True},
        {"grad": True},
        {"trajectory": True},
        {"return_info": True},
        {"seed": 3},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_that_a_replay_cannot_serve(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        cm.capture(cm.heun_pf_ode, EDM(net), x_of(), SIGMAS, **option)


def test_bad_arguments_of_the_sampler_are_found_at_the_capture():
    with pytest.raises(TypeError, match="unexpected keyword argument 'churn'"):
        cm.capture(cm.heun_pf_ode, EDM(net), x_of(), SIGMAS, churn=1.0)
    with pytest.raises(ValueError, match="sigmas must be strictly descending"):
        cm.capture(cm.euler_ancestral, EDM(net), x_of(), [1.0, 2.0])


def test_adaptive_solvers_must_not_wait():
    for options in ({}, {"mode": "masked"}, {"mode": "compact", "check_every": None}):
        with pytest.raises(ValueError, match='mode must be "masked" and check_every None'):
            cm.capture(cm.rk_pf_ode, Gaussian(0.5), x_of(), [20.0, 0.1], **options)
    run = cm.capture(
        cm.rk_pf_ode,
        Gaussian(0.5),
        x_of(),
        [20.0, 0.1],
        mode="masked",
        check_every=None,
        max_steps=40,
    )
    expected = cm.rk_pf_ode(Gaussian(0.5), x_of(), [20.0, 0.1])
    torch.testing.assert_close(run(x_of()), expected, rtol=1e-5, atol=1e-6)
