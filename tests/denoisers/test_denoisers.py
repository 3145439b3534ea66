"""Conversions to D against exact Gaussians, the published coefficients, and derivatives."""

import math
import warnings
from functools import partial

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers
from cmsolvers.denoisers import EDM, ConsistencyFunction
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.processes import DDPM, RectifiedFlow, TrigFlow
from support.columns import column

DATA = Gaussian(0.6, 0.3)
SIGMAS = torch.tensor([0.002, 0.05, 0.7, 3.0, 80.0], dtype=torch.float64)
PROCESSES = [
    cm.VP(),
    cm.SubVP(),
    cm.VE(0.001, 100.0),
    cm.Karras(),
    RectifiedFlow(),
    TrigFlow(),
]


def state(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    return (0.3 + x * column((SIGMAS**2 + 0.36).sqrt(), 3)).to(dtype)


def exact_networks(process):
    """Networks that know the data, in the coordinates and time of the process."""

    def parts(x_t, t):
        alpha, sigma = column(process.alpha(t), 3), column(process.sigma(t), 3)
        mean, variance = 0.3 * alpha, (0.6 * alpha) ** 2 + sigma**2
        score = (mean - x_t) / variance
        x0 = (x_t + sigma**2 * score) / alpha
        return alpha, sigma, score, x0

    def eps(x_t, t):
        _, sigma, score, _ = parts(x_t, t)
        return -sigma * score

    def v(x_t, t):
        alpha, sigma, score, x0 = parts(x_t, t)
        return alpha * (-sigma * score) - sigma * x0

    return {
        "from_eps": eps,
        "from_v": v,
        "from_score": lambda x, t: parts(x, t)[2],
        "from_x0": lambda x, t: parts(x, t)[3],
    }


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", ["from_eps", "from_v", "from_score", "from_x0"])
def test_every_parametrisation_is_the_same_denoiser(process, name):
    make = getattr(denoisers, name)
    denoiser = make(exact_networks(process)[name], process=process)
    x = state()
    torch.testing.assert_close(denoiser(x, SIGMAS), DATA(x, SIGMAS), rtol=1e-9, atol=1e-9)
    for b, s in enumerate(SIGMAS.tolist()):
        row = denoiser(x[b : b + 1], s)
        torch.testing.assert_close(row, DATA(x[b : b + 1], s), rtol=1e-9, atol=1e-9)


def test_edm_with_no_network_is_exact_for_its_own_data():
    x, data = state(), Gaussian(0.5)
    torch.testing.assert_close(EDM(lambda x, c: 0 * x)(x, SIGMAS), data(x, SIGMAS))


def test_edm_coefficients():
    sd = 0.4
    for s in SIGMAS.tolist():
        c_skip, c_out, c_in, c_noise = EDM(lambda x, c: x, sd).coefficients(s)
        root = math.sqrt(s * s + sd * sd)
        assert (c_skip, c_out) == pytest.approx((sd**2 / root**2, s * sd / root), rel=1e-14)
        assert (c_in, c_noise) == pytest.approx((1 / root, math.log(s) / 4), rel=1e-14)


def test_consistency_coefficients():
    sd, e = 0.5, 0.002
    for s in SIGMAS.tolist():
        f = ConsistencyFunction(lambda x, c: x, c_noise="published")
        c_skip, c_out, c_in, c_noise = f.coefficients(s)
        assert c_skip == pytest.approx(sd**2 / ((s - e) ** 2 + sd**2), rel=1e-14)
        assert c_out == pytest.approx((s - e) * sd / math.sqrt(s**2 + sd**2), rel=1e-14, abs=0)
        assert c_in == pytest.approx(1 / math.sqrt(s**2 + sd**2), rel=1e-14)
        assert c_noise == pytest.approx(250 * math.log(s), rel=1e-14)
    tensors = f.coefficients(SIGMAS.float())
    for k, s in enumerate(SIGMAS.float().tolist()):
        assert [c[k].item() for c in tensors] == pytest.approx(list(f.coefficients(s)), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_boundary_to_the_bit(dtype):
    x = state(dtype)
    f = ConsistencyFunction(lambda x, c: 1e3 * x.cos())
    assert torch.equal(f(x, 0.002), x)
    level = torch.full((5,), 0.002, dtype=torch.float64)
    assert torch.equal(f(x, level), x)
    assert torch.equal(f(x, level.float()), x)  # 0.002 as float32 holds it
    assert torch.equal(f(x, level.float()[0].item()), x)
    inf = ConsistencyFunction(lambda x, c: x + math.inf)
    assert torch.equal(inf(x, 0.002), x)
    other = ConsistencyFunction(lambda x, c: 1e3 * x.cos(), sigma_min=0.1)
    assert torch.equal(other(x, 0.1), x)
    assert not torch.equal(other(x, 0.2), x)


MAKERS = (
    EDM,
    ConsistencyFunction,
    partial(denoisers.from_eps, process=cm.Karras()),
    partial(denoisers.from_v, process=cm.VP()),
    denoisers.from_flow,
    denoisers.from_trigflow,
    lambda net, **how: denoisers.from_v(net, process=DDPM(), **how),
)


@pytest.mark.parametrize("end", [0.002, 0.3, 80.0])
def test_numbers_below_the_boundary_are_refused(end):
    """c_skip falls again there; what half precision makes of sigma_min is no such level."""
    f, x = cm.ConsistencyFunction(lambda x, c: 1e3 * x, sigma_min=end), torch.ones(2, 3)
    for sigma in (0.7 * end, 0.99 * end, 0.5 * end, 1e-30):
        with pytest.raises(ValueError, match=rf"^sigma must not be below sigma_min, {end:g}.*got"):
            f(x, sigma)
    assert torch.equal(f(x, end), x)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(f(x, torch.tensor(end).to(dtype).item()), x)
    assert f(x, math.nextafter(end, 0.0)).sub(x).abs().max() < 1e-9
    denoisers.EDM(lambda x, c: x)(x, 0.1 * end)  # others have no least level


def test_levels_below_the_boundary_in_a_tensor_are_not_read():
    """They are the formulas' there: waiting for the device would cost more than the call."""
    f, x = cm.ConsistencyFunction(lambda x, c: x.sin()), torch.ones(2, 3, dtype=torch.float64)
    sigma = torch.tensor([0.001, 2.0], dtype=torch.float64)
    c_skip, c_out, c_in, _ = (c[:, None] for c in f.coefficients(sigma))
    torch.testing.assert_close(f(x, sigma), c_skip * x + c_out * (c_in * x).sin())


def test_levels_as_number_scalar_and_vector_agree():
    x = state()
    net = lambda x, c, k: k * x.sin() + c.reshape(-1, 1, 1)  # noqa: E731
    for make in MAKERS:
        f = make(net)
        one = f(x, 0.7, k=2.0)
        torch.testing.assert_close(f(x, torch.tensor(0.7, dtype=torch.float64), k=2.0), one)
        torch.testing.assert_close(f(x, torch.full((5,), 0.7, dtype=torch.float64), k=2.0), one)


def test_what_the_network_gets():
    seen = []

    def net(x, c, label=None):
        seen.append((x.dtype, x.shape, c.dtype, c.shape, label))
        return x

    f = EDM(net, dtype=torch.float16)
    y = f(state(torch.float32), 0.7, label="a")
    assert y.dtype == torch.float32
    for level in (torch.tensor(0.7), SIGMAS, SIGMAS.float()):
        f(state(torch.float32), level, label="a")
    assert seen == [(torch.float16, (5, 2, 3), torch.float32, (5,), "a")] * 4


@pytest.mark.parametrize(
    "make", [EDM, ConsistencyFunction, partial(denoisers.from_v, process=cm.VP())]
)
def test_derivatives(make):
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = state()[:3].requires_grad_()
    levels = SIGMAS[1:4].clone()

    def call(x, weight, levels):
        net = lambda y, c: (weight * y + c.reshape(-1, 1, 1)).sin()  # noqa: E731
        return make(net)(x, levels)

    assert torch.autograd.gradcheck(lambda x, w: call(x, w, levels), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: call(x, w, levels), (x, weight))
    sigma = levels.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: call(x, weight.detach(), s), (x, sigma))


def test_forward_mode_in_sigma():
    x, levels = state()[:3], SIGMAS[1:4].clone()
    f = ConsistencyFunction(lambda y, c: (y + c.reshape(-1, 1, 1)).sin())
    _, tangent = torch.func.jvp(lambda s: f(x, s), (levels,), (torch.ones_like(levels),))
    h = 1e-6
    slope = (f(x, levels + h) - f(x, levels - h)) / (2 * h)
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_fullgraph(make):
    f = make(lambda y, c: (y + c.reshape(-1, 1, 1)).sin())
    x = state(torch.float32)
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, SIGMAS), f(x, SIGMAS))


def test_a_function_is_made_under_any_default_device():
    with torch.device("meta"):
        f = ConsistencyFunction(lambda x, c: x)
    x = torch.randn(2, 3)
    assert torch.equal(f(x, torch.full((2,), f.sigma_min)), x)


@pytest.mark.parametrize("make", [denoisers.from_eps, denoisers.from_score])
def test_noise_on_a_chain_that_ends_in_noise_alone(make):
    chain = DDPM(zero_terminal_snr=True)
    with pytest.warns(UserWarning, match=r"zero_terminal_snr.*predict v \(from_v\)") as caught:
        make(lambda x, t: x, process=chain)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(lambda x, t: x, process=DDPM())
        for other in (denoisers.from_v, denoisers.from_x0):
            other(lambda x, t: x, process=chain)


@pytest.mark.parametrize("name", ["from_eps", "from_v", "from_x0", "from_score"])
def test_the_process_of_a_network_is_named(name):
    """No guess: a network of a chain in the coordinates of another process makes garbage."""
    with pytest.raises(TypeError, match=rf"{name}\(\) missing 1 required .* argument: 'process'"):
        getattr(denoisers, name)(lambda x, t: x)
    assert "`DDPM()` is a chain" in getattr(denoisers, name).__doc__
