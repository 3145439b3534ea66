"""Every kind of network to every other by way of a denoiser, and under every sampler.

The networks know Gaussian data N(MEAN, STD^2) exactly. Each is written from its definition in its
own coordinates, apart from the scalings that are tested.
"""

# ruff: noqa: E731 - small networks and their faults are lambdas

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

import cmsolvers as cm
from cmsolvers import denoisers as de
from cmsolvers.denoisers import conversions as to
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.engine.catalogue import SOLVERS
from cmsolvers.processes import DDPM, VE, VP, Karras, RectifiedFlow, SubVP, TrigFlow
from support.columns import column64 as column

F64 = torch.float64
MEAN, STD = 0.3, 0.6
DATA = Gaussian(STD, MEAN)
LEVELS = torch.tensor([0.0101, 0.06, 0.7, 3.0, 80.0], dtype=F64)


def guess(x_hat, level):
    """(noise, clean sample) that the data imply, in Karras coordinates, without cancellation."""
    total = STD**2 + level**2
    return level * (x_hat - MEAN) / total, (STD**2 * x_hat + level**2 * MEAN) / total


def in_process(p, predict):
    """A network from `predict(alpha, sigma, eps, x0)` in the coordinates of a process."""

    def net(x, t):
        alpha, sigma = column(p.alpha(t), x), column(p.sigma(t), x)
        return predict(alpha, sigma, *guess(x / alpha, sigma / alpha))

    return net


def edm_network(sd, level_of):
    """F of EDM: the difference of the two shrinkage factors, simplified by hand."""

    def net(x_in, c):
        s = column(level_of(torch.as_tensor(c, dtype=F64)), x_in)
        total, own = STD**2 + s**2, sd**2 + s**2
        x = x_in * own.sqrt()
        return s * own.sqrt() / sd * (x * (STD**2 - sd**2) / (total * own) + MEAN / total)

    return net


def trig_network(sd):
    """F of TrigFlow: sd F = cos t (sd z) - sin t x0, the velocity on the circle."""

    def net(x_in, t):
        t = column(t, x_in)
        eps, x0 = guess(sd * x_in / t.cos(), sd * t.tan())
        return t.cos() * eps - t.sin() * x0 / sd

    return net


@dataclass(frozen=True)
class Kind:
    """A kind of network: exact one, ways to and from a denoiser, and its input at a level."""

    net: Any
    to_denoiser: Any
    from_denoiser: Any
    place: Any  # (x_hat, level) -> (what the network gets)
    ends: tuple[float, float] = (0.002, 80.0)
    unit: Any = lambda level: 1.0  # of the prediction at a level
    tolerance: float = 1e-12


def of_process(name, p, predict):
    def place(x_hat, level):
        t = p.t_of_sigma(level)
        return x_hat * column(p.alpha(t), x_hat), t

    return Kind(
        in_process(p, predict),
        # A chain would hold t to its range, which is another function below its first level.
        lambda net: getattr(de, f"from_{name}")(
            net, process=p, c_noise=p.t_of_sigma, coordinates="karras"
        ),
        lambda d: getattr(to, f"to_{name}")(d, process=p),
        place,
        (p.sigma_hat(p.t_min), p.sigma_hat(p.t_max)),
        # x - D keeps few digits at small levels, and a score is that over sigma twice.
        lambda level: 1 / p.sigma(p.t_of_sigma(level)) if name == "score" else 1.0,
        # The time 998.75 has 4e-13 of the quarter step that is left, and so of its level.
        1e-11 if getattr(p, "zero_terminal_snr", False) else 1e-12,
    )


def of_edm(sd, c_noise, level_of):
    def place(x_hat, level):
        s = torch.as_tensor(level, dtype=F64)
        c = {"edm": s.log() / 4, "published": 250 * s.log(), "sigma": s}[c_noise]
        return x_hat / column((s**2 + sd**2).sqrt(), x_hat), c if c.ndim else c.item()

    return Kind(
        edm_network(sd, level_of),
        lambda net: de.EDM(net, sd, c_noise=c_noise),
        lambda d: to.to_edm(d, sd, c_noise=c_noise),
        place,
    )


def of_trigflow(sd):
    def place(x_hat, level):
        t = torch.atan(torch.as_tensor(level, dtype=F64) / sd)
        return x_hat * column(t.cos(), x_hat) / sd, t if t.ndim else t.item()

    return Kind(
        trig_network(sd),
        lambda net: de.from_trigflow(net, sd),
        lambda d: to.to_trigflow(d, sd),
        place,
    )


PREDICT = {
    "eps": lambda alpha, sigma, eps, x0: eps,
    "v": lambda alpha, sigma, eps, x0: alpha * eps - sigma * x0,
    "x0": lambda alpha, sigma, eps, x0: x0,
    "score": lambda alpha, sigma, eps, x0: -eps / sigma,
}
VELOCITY = lambda alpha, sigma, eps, x0: eps - x0
CHAIN = DDPM(schedule="linear")

SEVEN = {
    "eps, DDPM": of_process("eps", CHAIN, PREDICT["eps"]),
    "v, VP": of_process("v", VP(), PREDICT["v"]),
    "x0, sub-VP": of_process("x0", SubVP(), PREDICT["x0"]),
    "score, VE": of_process("score", VE(0.001, 100.0), PREDICT["score"]),
    "flow": of_process("flow", RectifiedFlow(), VELOCITY),
    "F": of_edm(0.5, "edm", lambda c: torch.exp(4 * c)),
    "TrigFlow F": of_trigflow(0.5),
}
OTHERS = {
    "F published": of_edm(0.4, "published", lambda c: torch.exp(c / 250)),
    "F sigma": of_edm(1.0, "sigma", lambda c: c),
    "TrigFlow F, sd 1": of_trigflow(1.0),
    # On the straight and on the circular path the velocity has a closed form; on EDM's it is eps.
    "flow, Karras": of_process("flow", Karras(), PREDICT["eps"]),
    "flow, circle": of_process(
        "flow", TrigFlow(0.5), lambda alpha, sigma, eps, x0: 0.5 * alpha * eps - sigma / 0.5 * x0
    ),
    # sigma' = -alpha' alpha / sigma where the variance is kept, and alpha' = -beta alpha / 2.
    "flow, VP": of_process(
        "flow",
        VP(2.0, 2.0),
        lambda alpha, sigma, eps, x0: -alpha * x0 + alpha**2 / sigma * eps,
    ),
}
for target, predict in PREDICT.items():
    for process in (
        VP(),
        SubVP(),
        VE(),
        Karras(),
        RectifiedFlow(),
        TrigFlow(),
        CHAIN,
        DDPM(schedule="scaled_linear", zero_terminal_snr=True),
    ):
        OTHERS[f"{target}, {process!r}"] = of_process(target, process, predict)
ALL = {**SEVEN, **OTHERS}


def state(levels):
    """[B, 2, 3] with the spread of data and noise."""
    z = torch.randn(len(levels), 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return MEAN + z * column((levels**2 + STD**2).sqrt(), z)


def assert_same(a, b, tolerance=1e-12):
    atol = tolerance * max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a, b, rtol=tolerance, atol=atol)


def both_ways(call, x, levels, tolerance=1e-12):
    """The result for levels as a tensor [B] and as one number a sample; they agree."""
    together = call(x, levels)
    for b, level in enumerate(levels.tolist()):
        assert_same(call(x[b : b + 1], level), together[b : b + 1], tolerance)
    return together


def predictions(kind, network, x, levels):
    """What a network says at levels, in its own unit."""

    def call(x, level):
        return network(*kind.place(x, level)) / column(kind.unit(level), x)

    return both_ways(call, x, levels, kind.tolerance)


@pytest.mark.parametrize("target", SEVEN)
@pytest.mark.parametrize("source", SEVEN)
def test_every_pair(source, target):
    """Source to target, and back again."""
    a, b = SEVEN[source], SEVEN[target]
    x = state(LEVELS)
    denoiser = a.to_denoiser(a.net)
    assert_same(both_ways(denoiser, x, LEVELS), DATA(x, LEVELS))
    other = b.from_denoiser(denoiser)
    assert_same(predictions(b, other, x, LEVELS), predictions(b, b.net, x, LEVELS))
    again = a.from_denoiser(b.to_denoiser(other))
    assert_same(predictions(a, again, x, LEVELS), predictions(a, a.net, x, LEVELS))


@pytest.mark.parametrize("name", ALL)
def test_round_trips_to_the_ends_of_the_range(name):
    kind = ALL[name]
    levels = torch.tensor([kind.ends[0], 0.5, 2.0, kind.ends[1]], dtype=F64)
    x = state(levels)
    denoiser, exact, tolerance = kind.to_denoiser(kind.net), DATA(x, levels), kind.tolerance
    assert_same(both_ways(denoiser, x, levels, tolerance), exact, tolerance)
    back = kind.from_denoiser(DATA)
    wanted = predictions(kind, kind.net, x, levels)
    assert_same(predictions(kind, back, x, levels), wanted, tolerance)
    assert_same(kind.to_denoiser(back)(x, levels), exact, tolerance)


FAULTS = {
    "flow": lambda net: lambda x, t: -net(x, t),
    "v, VP": lambda net: lambda x, t: net(x, 0.999 * t),
    "eps, DDPM": lambda net: lambda x, t: net(x, (t - 0.5).floor()),
    "TrigFlow F": lambda net: lambda x, t: -net(x, t),
    "F": lambda net: lambda x, c: net(x, c + 1e-6),
    "score, VE": lambda net: lambda x, t: net(1.000001 * x, t),
    "x0, sub-VP": lambda net: lambda x, t: net(x, t + 1e-6),
}


@pytest.mark.parametrize("name", SEVEN)
def test_a_wrong_network_is_seen(name):
    kind, x = SEVEN[name], state(LEVELS)
    wrong = kind.to_denoiser(FAULTS[name](kind.net))
    with pytest.raises(AssertionError):
        assert_same(wrong(x, LEVELS), DATA(x, LEVELS))


@pytest.mark.parametrize("coordinates", [VP(), RectifiedFlow()], ids=repr)
def test_a_wrong_process_is_seen(coordinates):
    """The level is the same, the state and the time are not."""
    x, net = state(LEVELS), SEVEN["eps, DDPM"].net
    with pytest.raises(AssertionError):
        assert_same(de.from_eps(net, process=coordinates)(x, LEVELS), DATA(x, LEVELS))


SAMPLERS = [
    name for name, facts in SOLVERS.items() if facts.space == "sigma" and not facts.adaptive
]
SAMPLERS = [name for name in SAMPLERS if name not in ("consistency_sample",)]
assert len(SAMPLERS) >= 4
GRID = [60.0, 12.0, 3.0, 0.8, 0.2, 0.02, 0.0]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", SEVEN)
def test_every_kind_under_every_sampler(name, sampler):
    """The chain's network gets its own time here, held to the chain."""
    kind = SEVEN[name]
    denoiser = kind.to_denoiser(kind.net)
    if name == "eps, DDPM":
        denoiser = de.from_eps(kind.net, process=CHAIN)
    run = getattr(cm.solvers, sampler)
    x = 60.0 * cm.noise.normal((4, 3), seed=1, dtype=F64)
    expected = run(DATA, x, GRID, seed=2)
    assert expected.isfinite().all()
    got = run(denoiser, x, GRID, seed=2)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_the_score_is_what_the_reverse_sde_wants():
    p = RectifiedFlow()
    denoiser = de.from_flow(SEVEN["flow"].net)
    ts = p.t_of_sigma(cm.karras_sigmas(20, 0.01, 50.0, append_zero=False))
    x = p.prior((4, 3), seed=1, dtype=F64)
    run = lambda score: cm.euler_maruyama(p.reverse(score), x, ts, seed=2)
    assert_same(run(to.to_score(denoiser, process=p)), run(p.score_of(DATA)))


def test_the_flow_is_the_probability_flow_ode():
    """Along it the data's quantile is kept: x_t - mean grows with the spread of the marginal."""
    p, x = RectifiedFlow(), state(LEVELS)
    for t in (0.01, 0.4, 0.95):
        spread = math.hypot((1 - t) * STD, t)
        slope = (t - (1 - t) * STD**2) / spread
        expected = -MEAN + (x - (1 - t) * MEAN) * slope / spread
        assert_same(to.to_flow(DATA)(x, t), expected)
        assert_same(p.probability_flow(p.score_of(DATA)).drift(x, t), expected)


def test_what_a_published_chain_is_called_with():
    """D = x - sigma eps(x / sqrt(1 + sigma^2), t), plainly, on the chain's own levels."""
    for chain in (CHAIN, DDPM(schedule="cosine")):
        sigmas = cm.schedules.ddpm_sigmas(10, chain)
        seen = []

        def net(x, t, seen=seen, label=None):
            seen.append((t.unique().item(), label))
            return x.sin()

        x = sigmas[0] * cm.noise.normal((4, 3), seed=1, dtype=F64)
        denoiser = de.from_eps(net, process=chain, c_noise=chain.nearest_time)
        got = cm.ddim(denoiser, x, sigmas, extra_args={"label": 3})
        assert seen == [(float(t), 3) for t in chain.timesteps(10)]
        bar = chain.alphas_bar.sqrt()
        for t, end in zip(chain.timesteps(10), [*chain.timesteps(10)[1:], None], strict=True):
            s = (1 - bar[t] ** 2).sqrt() / bar[t]
            eps = (x * bar[t]).sin()
            x = x - s * eps
            if end is not None:
                x = x + (1 - bar[end] ** 2).sqrt() / bar[end] * eps
        torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)


def test_flow_euler_is_euler_of_the_flow_ode():
    """x' = x + (t' - t) u in flow coordinates, from the same first state: the same steps."""
    p, net = RectifiedFlow(), lambda x, t: (x + t.reshape(-1, 1)).sin()
    sigmas = cm.schedules.flow_sigmas(8, shift=3.0)
    x = cm.noise.normal((4, 3), seed=1, dtype=F64)
    got = cm.euler_pf_ode(de.from_flow(net, coordinates="karras"), sigmas[0].item() * x, sigmas)
    times = p.t_of_sigma(sigmas).tolist()
    y = times[0] * x
    for t, end in pairwise(times):
        y = y + (end - t) * net(y, torch.full((4,), t, dtype=F64))
    torch.testing.assert_close(got, y, rtol=1e-11, atol=1e-11)


def test_trigflow_as_the_paper_writes_it():
    net, sd = lambda x, t: (x + t.reshape(-1, 1)).sin(), 0.5
    t = torch.tensor([0.01, 0.7, 1.5], dtype=F64)
    x_t = torch.randn(3, 4, dtype=F64)
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    got = de.from_trigflow(net, sd)(x_t / cos, sd * t.tan())
    torch.testing.assert_close(got, cos * x_t - sin * sd * net(x_t / sd, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision(dtype):
    x = state(LEVELS)[2:4].to(dtype)
    levels = LEVELS[2:4]
    rtol = 8 * torch.finfo(dtype).eps
    for name, kind in ALL.items():
        wide, t = kind.place(x.double(), levels)
        got = kind.from_denoiser(DATA)(wide.to(dtype), t)
        assert got.dtype is dtype
        exact = kind.net(wide, t)
        torch.testing.assert_close(
            got.double(), exact, rtol=rtol, atol=10 * rtol * float(exact.abs().max()), msg=name
        )


def test_half_precision_subtracts_what_the_denoiser_read():
    """Where D = x there is no noise, to the bit, although x / alpha is rounded."""
    x = state(LEVELS).to(torch.float16)
    assert not to.to_eps(lambda x, s: x, process=VP())(x, 0.7).any()
    assert not to.to_score(lambda x, s: x, process=VP())(x, 0.7).any()


def test_integer_times_and_arguments():
    seen = []

    def denoiser(x, sigma, label):
        seen.append((sigma.dtype, sigma.shape, label))
        return DATA(x, sigma)

    eps = to.to_eps(denoiser, process=CHAIN)
    x = torch.randn(3, 2)
    t = torch.tensor([3, 500, 999])
    assert_same(eps(x, t, label=1).double(), eps(x, t.double(), label=1).double())
    eps(x, 500, label=1)
    eps(x, torch.tensor(500), label=1)
    assert seen == [(torch.float32, (3,), 1)] * 4


@pytest.mark.parametrize("name", SEVEN)
def test_derivatives(name):
    kind, levels = SEVEN[name], LEVELS[1:4]
    x_in, t = kind.place(state(LEVELS)[1:4], levels)
    network = kind.from_denoiser(lambda x, s: x.sin())
    assert torch.autograd.gradcheck(lambda x: network(x, t), x_in.requires_grad_())
    denoiser = kind.to_denoiser(lambda x, c: x.sin())
    sigma = levels.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: denoiser(state(LEVELS)[1:4], s), sigma)


X = torch.ones(4, 3)
ONES = {
    "to_eps": to.to_eps,
    "to_v": to.to_v,
    "to_x0": to.to_x0,
    "to_score": to.to_score,
    "to_flow": to.to_flow,
    "to_edm": to.to_edm,
    "to_trigflow": to.to_trigflow,
}
BAD = []
for name, make in ONES.items():
    BAD += [
        (f"{name}-denoiser", lambda f=make: f(3), TypeError, "denoiser must be callable; got 3"),
        (f"{name}-x", lambda f=make: f(DATA)([1.0], 0.5), TypeError, "x must be a torch.Tensor"),
        (f"{name}-t", lambda f=make: f(DATA)(X, "1"), TypeError, "t must be a number; got '1'"),
        (f"{name}-nan", lambda f=make: f(DATA)(X, math.nan), ValueError, "t must be a number"),
        (
            f"{name}-length",
            lambda f=make: f(DATA)(X, torch.ones(3)),
            ValueError,
            "t must have shape [] or [B] = [4]; got [3]",
        ),
        (
            f"{name}-bool",
            lambda f=make: f(DATA)(X, X[:, 0] > 0),
            TypeError,
            "t must hold real numbers; got torch.bool",
        ),
        (
            f"{name}-device",
            lambda f=make: f(DATA)(X, torch.ones(4, device="meta")),
            ValueError,
            "t must be on the device of x",
        ),
        (
            f"{name}-returns",
            lambda f=make: f(lambda x, s: x[:1])(X, 0.5),
            ValueError,
            "denoiser must return the shape of x",
        ),
    ]
for name in ("to_eps", "to_v", "to_x0", "to_score", "to_flow"):
    call = lambda f=ONES[name]: f(DATA, process=3)
    BAD.append((f"{name}-process", call, TypeError, "process must be a Process; got 3"))
for name in ("to_edm", "to_trigflow"):
    call = lambda f=ONES[name]: f(DATA, 0.0)
    BAD.append((f"{name}-sigma_data", call, ValueError, "sigma_data must be positive; got 0"))
ZERO = lambda p, t: lambda: to.to_v(DATA, process=p)(X, t)
NO_LEVEL = "t must have a positive, finite noise level"
BAD += [
    ("end of the flow", ZERO(RectifiedFlow(), 1.0), ValueError, f"{NO_LEVEL}; got 1.0 at inf"),
    ("clean flow", ZERO(RectifiedFlow(), 0.0), ValueError, f"{NO_LEVEL}; got 0.0 at 0"),
    ("clean chain", ZERO(DDPM(), -1), ValueError, f"{NO_LEVEL}; got -1 at 0"),
    ("chain", ZERO(DDPM(zero_terminal_snr=True), 999), ValueError, f"{NO_LEVEL}; got 999 at inf"),
    ("c_noise", lambda: to.to_edm(DATA, c_noise="x"), ValueError, "c_noise must be one of 'edm'"),
    ("from_flow-net", lambda: de.from_flow(3), TypeError, "net must be callable; got 3"),
    ("from_flow-process", lambda: de.from_flow(DATA, process=3), TypeError, "process must be a"),
    ("from_flow-c_noise", lambda: de.from_flow(DATA, c_noise="t"), ValueError, "c_noise must be"),
    ("from_trigflow-net", lambda: de.from_trigflow(3), TypeError, "net must be callable; got 3"),
    ("from_trigflow-sd", lambda: de.from_trigflow(DATA, -1.0), ValueError, "sigma_data must be"),
    ("from_trigflow-c", lambda: de.from_trigflow(DATA, c_noise=3), TypeError, "c_noise must be"),
    ("TrigFlow-sd", lambda: TrigFlow(0.0), ValueError, "sigma_data must be positive; got 0"),
    ("TrigFlow-order", lambda: TrigFlow(0.5, 2.0, 1.0), ValueError, "sigma_min must be below"),
    ("TrigFlow-kind", lambda: TrigFlow("1"), TypeError, "sigma_data must be a number"),
]


@pytest.mark.parametrize("call, error, text", [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("t", [0.002, 0.01])
@pytest.mark.parametrize("kind", ["eps", "score", "score_of"])
def test_what_cancels_in_half_precision_is_left_to_float32(dtype, t, kind):
    """D = 0.995 x nearly: F has the digits of the difference of what the denoiser saw and said."""
    p, seen = VP(), []

    def denoiser(x, sigma):
        seen[:] = x.double(), (0.995 * x.double()).to(dtype).double()
        return seen[1].to(dtype)

    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    make = {
        "eps": lambda: to.to_eps(denoiser, process=p),
        "score": lambda: to.to_score(denoiser, process=p),
        "score_of": lambda: p.score_of(denoiser),
    }
    got = make[kind]()(x, t).double()
    alpha, sigma = p.alpha(t), p.sigma(t)
    away = alpha * (seen[0] - seen[1])
    expected = away / sigma if kind == "eps" else -away / sigma**2
    digit = torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=digit, atol=0.0)
    if t == 0.01:  # the control: the user's x in place of what the denoiser saw
        rough = (x.double() - alpha * seen[1]) / sigma
        rough = rough if kind == "eps" else -rough / sigma
        assert ((rough - expected).abs() > 4 * digit * expected.abs()).float().mean() > 0.5
