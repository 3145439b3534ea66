"""Which coordinates a denoiser names, and what it answers in them."""

from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers.denoisers import (
    clipped,
    from_eps,
    from_flow,
    from_score,
    from_v,
    from_x0,
    guided,
)
from cmsolvers.processes.coordinates import FLOW, KARRAS, Coordinates, coordinates_of, in_karras
from support.columns import column
from support.flows import (
    DATA,
    FLOWING,
    TRIG,
    X,
    clean,
    velocity,
)
from support.orders import F64


def test_who_names_which():
    assert coordinates_of(velocity) is KARRAS
    assert FLOWING.coordinates is FLOW
    assert from_flow(velocity, coordinates="karras").coordinates is KARRAS
    assert from_v(velocity, process=cm.VP()).coordinates is KARRAS
    assert from_v(velocity, process=cm.VP(), coordinates="process").coordinates.process == cm.VP()
    assert from_eps(velocity, process=cm.Karras(), coordinates="process").coordinates is KARRAS
    assert from_flow(velocity, process=cm.DDPM()).coordinates is KARRAS
    for wrapped in (clipped(FLOWING), guided(FLOWING, 2.0, unconditional={})):
        assert wrapped.coordinates is FLOW

    def own(x, t):
        return x

    own.coordinates = "flow"
    assert coordinates_of(own) is FLOW
    own.coordinates = cm.RectifiedFlow()
    assert coordinates_of(own) is FLOW


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: guided(FLOWING, 2.0, weak=DATA), ValueError, "weak must be in the coordinates"),
        (
            lambda: from_flow(velocity, c_noise="edm"),
            ValueError,
            "c_noise must be None or a callable of t in the coordinates of a process; got 'edm'",
        ),
        (
            lambda: from_v(velocity, process=cm.DDPM(), coordinates="process"),
            ValueError,
            "coordinates must be those of a process whose states at time 0 are clean data",
        ),
        (
            lambda: from_v(velocity, process=cm.VP(), coordinates="flow"),
            ValueError,
            "coordinates must be one of",
        ),
        (lambda: Coordinates(cm.VE()), ValueError, "sigma = 0.01 there"),
        (lambda: FLOWING(torch.ones(2, 1), 1.5), ValueError, r"t must lie in \[0, 1\].*got 1.5"),
        (
            lambda: cm.euler_pf_ode(FLOWING, torch.ones(2, 1), [80.0, 1.0]),
            ValueError,
            r"sigmas must lie in \[0, 1\] for a denoiser in flow coordinates; got 80 at index 0",
        ),
        (
            lambda: cm.rk_pf_ode(FLOWING, torch.ones(2, 1), [80.0, 1.0]),
            ValueError,
            r"sigmas must lie in \[0, 1\] for a denoiser in flow coordinates",
        ),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_what_wraps_a_denoiser_has_its_coordinates():
    for wrapper in (
        partial(FLOWING, label=3),
        torch.nn.DataParallel(FLOWING),
        torch.compile(FLOWING),
        partial(partial(FLOWING)),
    ):
        assert coordinates_of(wrapper) is FLOW

    class Mesh(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("coordinates", torch.zeros(3))

    assert coordinates_of(Mesh()) is KARRAS


def test_unknown_names():
    def own(x, t):
        return x

    own.coordinates = "euclid"
    with pytest.raises(ValueError, match="coordinates of a model must be one of 'karras', 'fl"):
        cm.euler_pf_ode(own, torch.ones(2, 1), [1.0, 0.0])
    own.coordinates = 3
    with pytest.raises(TypeError, match="coordinates of a model must be"):
        cm.euler_pf_ode(own, torch.ones(2, 1), [1.0, 0.0])


@pytest.mark.parametrize("t", [1e-4, 0.3, 0.999, 1.0])
def test_the_velocity_gives_the_mean(t):
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    wanted = clean(cm.RectifiedFlow())(x, torch.full((5,), t, dtype=F64))
    for level in (t, torch.full((5,), t, dtype=F64)):
        torch.testing.assert_close(FLOWING(x, level), wanted, rtol=1e-13, atol=1e-13)


def test_the_network_sees_the_state_and_the_time_themselves():
    seen = []

    def net(x, t):
        seen.append((x.clone(), t.clone()))
        return 0.0 * x

    x = torch.full((2, 3), 1.7)
    cm.euler_pf_ode(from_flow(net), x, [1.0, 0.25, 0.0])
    assert torch.equal(seen[0][0], x)
    assert [t.tolist() for _, t in seen] == [[1.0, 1.0], [0.25, 0.25]]
    cm.euler_pf_ode(from_flow(net, c_noise=lambda t: 1000 * t), x, [1.0, 0.25, 0.0])
    assert seen[-1][1].tolist() == [250.0, 250.0]


TARGETS = {
    "eps": (from_eps, lambda a, s, x0, x: (x - a * x0) / s),
    "v": (from_v, lambda a, s, x0, x: a * (x - a * x0) / s - s * x0),
    "x0": (from_x0, lambda a, s, x0, x: x0),
}


@pytest.mark.parametrize("process", [cm.VP(), cm.SubVP(), TRIG, cm.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("target", TARGETS)
def test_networks_in_the_coordinates_of_a_process(process, target):
    make, said = TARGETS[target]
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    mean = clean(process)

    def net(x, t):
        a, s = column(process.alpha(t), x), column(process.sigma(t), x)
        return said(a, s, mean(x, t), x)

    denoiser = make(net, process=process, coordinates="process")
    t = 0.6 * process.t_max
    wanted = mean(x, torch.full((5,), t, dtype=F64))
    torch.testing.assert_close(denoiser(x, t), wanted, rtol=1e-12, atol=1e-12)
    karras = make(net, process=process, coordinates="karras")
    alpha = process.alpha(t)
    torch.testing.assert_close(
        karras(x / alpha, process.sigma_hat(t)), wanted, rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(
        in_karras(denoiser)(x / alpha, process.sigma_hat(t)), wanted, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("process", [cm.VP(), TRIG], ids=repr)
def test_velocity_networks_of_other_processes(process):
    """Alpha' x0 + sigma' z with finite differences of alpha and sigma."""
    mean, e = clean(process), 1e-6

    def net(x, t):
        t = t.double()
        a, s = column(process.alpha(t), x), column(process.sigma(t), x)
        da, ds = (
            column((f(t + e) - f(t - e)) / (2 * e), x) for f in (process.alpha, process.sigma)
        )
        x0 = mean(x, t)
        return da * x0 + ds * (x - a * x0) / s

    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    denoiser = from_flow(net, process=process, coordinates="process")
    wanted = mean(x, torch.full((5,), 0.4, dtype=F64))
    torch.testing.assert_close(denoiser(x, 0.4), wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [from_eps, from_score])
def test_noise_alone_says_nothing_to_networks_of_noise(make):
    denoiser = make(lambda x, t: x, process=cm.RectifiedFlow(), coordinates="process")
    with pytest.raises(ValueError, match=r"t must leave some of the data .*; got 1"):
        cm.euler_pf_ode(denoiser, X, [1.0, 0.5])
    assert cm.euler_pf_ode(denoiser, X, [0.9, 0.5]).isfinite().all()


def test_adaptive_solvers_name_the_level():
    with pytest.raises(ValueError, match=r"lie in \[0, 1\] .*; got 2 at index 2"):
        cm.rk_pf_ode(FLOWING, X, [0.1, 0.5, 2.0])
