"""`flow_map_sample`: exact maps give exact samples in any number of steps, with noise too."""

import math
import re
from functools import partial
from itertools import pairwise

import pytest
import torch

import cmsolvers as cm
from cmsolvers import noise
from cmsolvers.denoisers import clipped
from cmsolvers.engine import Step
from cmsolvers.processes.coordinates import coordinates_of
from support.columns import column
from support.exact import assert_same_bits
from support.flow_maps import MEAN, SD, carried, exact_maps
from support.formulas import sampler_of

F64 = torch.float64
MAPS = exact_maps()
TIMES = {
    "flow": [1.0, 0.7, 0.45, 0.2, 0.0],
    "karras": [40.0, 5.0, 1.0, 0.2, 0.0],
    "trigflow": [math.atan(80.0), 1.3, 0.8, 0.3, 0.0],
    "ctm": [40.0, 5.0, 1.0, 0.2, 0.0],
}
each_map = pytest.mark.parametrize("name", MAPS)


def grid(name, steps):
    """The first time, then `steps` more that end in 0."""
    times = TIMES[name]
    return [times[0], *times[1:steps], 0.0]


def latent(name, n=6, dtype=F64):
    path = MAPS[name].coordinates
    a, s = path.alpha(TIMES[name][0]), path.sigma(TIMES[name][0])
    return (a * MEAN + math.hypot(a * SD, s) * noise.normal((n, 3), 5, dtype=F64)).to(dtype)


def full(x, level):
    return torch.full((len(x),), level, dtype=F64)


# --- exact maps ----------------------------------------------------------------------------------


@each_map
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_exact_map_is_exact_in_any_number_of_steps(name, steps):
    f, x, times = MAPS[name], latent(name), grid(name, steps)
    y, info = cm.flow_map_sample(f, x, times, return_info=True)
    expected = carried(f.coordinates, x, full(x, times[0]), full(x, 0.0))
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    assert info.nfe == info.steps == steps
    states = cm.flow_map_sample(f, x, times, trajectory=True)[1].trajectory
    for level, state in zip(times, states, strict=True):
        there = carried(f.coordinates, x, full(x, times[0]), full(x, level))
        torch.testing.assert_close(state, there, rtol=1e-11, atol=1e-11)


def test_a_map_that_is_not_exact_shows():
    """The negative control: a network that is told the wrong end."""
    f = MAPS["flow"]
    wrong = cm.AverageVelocity(lambda x, t, s: f.net(x, t, 0.9 * s))
    x = latent("flow")
    y = cm.flow_map_sample(wrong, x, grid("flow", 3))
    expected = carried(f.coordinates, x, full(x, 1.0), full(x, 0.0))
    assert (y - expected).abs().max() > 1e-2


class OneHot:
    """Noise that makes a linear run show its variance: each normal has a row of its own."""

    def __init__(self, n):
        self.rows = iter(torch.eye(n, dtype=F64))

    def __call__(self, t, to):
        return next(self.rows)


def law(f, times, gamma, s_noise=1.0):
    """(mean, variance) of the result, without sampling error: the run is affine in x and noise."""
    path = f.coordinates
    n, start = len(times), math.hypot(path.alpha(times[0]) * SD, path.sigma(times[0]))

    def run(x, z):
        return cm.flow_map_sample(f, x, times, gamma=gamma, noise_sampler=z, s_noise=s_noise)

    mean = torch.full((n + 1,), path.alpha(times[0]) * MEAN, dtype=F64)
    at_mean = run(mean, lambda *_: torch.zeros(n + 1, dtype=F64))
    hot = mean.clone()
    hot[n] += start
    return at_mean[0], (run(hot, OneHot(n + 1)) - at_mean).square().sum()


@each_map
@pytest.mark.parametrize("gamma", [0.0, 1e-4, 0.3, 0.9, 1.0])
def test_every_gamma_keeps_the_law(name, gamma):
    f, path = MAPS[name], MAPS[name].coordinates
    for times in (grid(name, 4), TIMES[name][:4], grid(name, 1)):
        a, s = path.alpha(times[-1]), path.sigma(times[-1])
        mean, variance = law(f, times, gamma)
        assert abs(mean - a * MEAN) < 1e-12
        assert abs(variance / (a * a * SD**2 + s * s) - 1) < 1e-10


def test_too_much_noise_changes_the_law():
    _, variance = law(MAPS["flow"], TIMES["flow"][:4], 0.9, s_noise=1.05)
    path = MAPS["flow"].coordinates
    right = path.alpha(0.2) ** 2 * SD**2 + path.sigma(0.2) ** 2
    assert abs(variance / right - 1) > 1e-3


def test_the_step_with_noise_is_the_papers():
    """To sqrt(1 - gamma^2) s, and back to s with noise gamma s (Karras coordinates)."""
    told, x, z = [], latent("karras"), noise.normal((6, 3), 8, dtype=F64)

    def f(x, t, s):
        told.append((float(t[0]), float(s[0])))
        return 0.5 * x + column(s, x)

    y = cm.flow_map_sample(f, x, [10.0, 2.0], gamma=0.6, noise_sampler=lambda *_: z)
    assert told == [(10.0, pytest.approx(1.6, rel=1e-15))]
    torch.testing.assert_close(y, 0.5 * x + 1.6 + 1.2 * z)
    flow = MAPS["flow"]
    told.clear()
    f.coordinates = "flow"
    y = cm.flow_map_sample(f, x, [1.0, 0.5], gamma=0.6, noise_sampler=lambda *_: z)
    below = 0.8 / 1.8  # the ratio s / (1 - s) is 0.8 there and 1 at 0.5
    assert told == [(1.0, pytest.approx(below, rel=1e-15))]
    torch.testing.assert_close(y, 0.5 / (1 - below) * (0.5 * x + below) + 0.3 * z)
    assert coordinates_of(f) == flow.coordinates


# --- functions of one time -----------------------------------------------------------------------


def wave(x, c, gain=1.0):
    return gain * (x * 1.3).sin() + 0.1 * c.reshape(-1, 1).to(x.dtype)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["plain", "clipped", "called"])
def test_gamma_1_is_multistep_consistency_sampling_to_the_bit(dtype, kind):
    f = cm.ConsistencyFunction(wave, 0.5, 0.01)
    if kind == "called":
        f.register_forward_hook(lambda *_: None)
    asked = clipped(f, -1.0, 1.0) if kind == "clipped" else f
    x = (20.0 * noise.normal((6, 3), 5)).to(dtype)
    for levels in ([20.0], [20.0, 1.0], [20.0, 5.0, 0.5]):
        args = {"seed": 3, "extra_args": {"gain": 0.7}}
        expected = cm.consistency_sample(asked, x, levels, sigma_min=0.01, **args)
        assert_same_bits(cm.flow_map_sample(asked, x, [*levels, 0.0], gamma=1.0, **args), expected)
    one = cm.flow_map_sample(asked, x, [20.0, 0.0], **args)  # gamma does not enter
    assert_same_bits(one, cm.consistency_sample(asked, x, [20.0], sigma_min=0.01, **args))


def test_a_trigflow_consistency_function():
    f = cm.TrigFlowMap(lambda x, t: wave(x, t), 0.5)
    x, z = 0.5 * noise.normal((6, 3), 5, dtype=F64), noise.normal((6, 3), 6, dtype=F64)
    y = cm.flow_map_sample(f, x, [1.5, 0.7, 0.0], gamma=1.0, noise_sampler=lambda *_: z)
    middle = math.cos(0.7) * f(x, 1.5) + 0.5 * math.sin(0.7) * z
    torch.testing.assert_close(y, f(middle, 0.7), rtol=1e-13, atol=1e-13)


# --- the engine ----------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(3, 3)

    def forward(self, x, t, s, gain=1.0):
        if isinstance(gain, torch.Tensor):
            gain = gain[:, None].to(x.dtype)
        times = (t - 0.5 * s)[:, None].to(x.dtype)
        return gain * torch.tanh(self.layer.to(x.dtype)(x) + times)


KINDS = {
    "average": cm.AverageVelocity,
    "length": partial(cm.AverageVelocity, second="length"),
    "trigflow": partial(cm.TrigFlowMap, second="end"),
    "ctm": cm.TrajectoryFunction,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_folded_and_called_maps_agree(kind, dtype):
    """The network inside of the step, a map with a hook that is called, and a function of it."""
    f, called = KINDS[kind](Net()), KINDS[kind](Net())
    called.register_forward_hook(lambda *_: None)
    plain = lambda x, t, s, **extra: f(x, t, s, **extra)  # noqa: E731
    plain.coordinates = f.coordinates
    x, gains = noise.normal((5, 3), 1, dtype=dtype), torch.linspace(0.5, 1.5, 5)
    for gamma in (0.0, 0.4, 1.0):
        args = {"gamma": gamma, "seed": 2, "extra_args": {"gain": gains}}
        times = [1.0, 0.6, 0.2, 0.0]
        runs = [cm.flow_map_sample(g, x, times, **args) for g in (f, called, plain)]
        for other in runs[1:]:
            torch.testing.assert_close(other, runs[0], rtol=20 * torch.finfo(dtype).eps, atol=1e-6)
        assert not torch.equal(runs[0], cm.flow_map_sample(f, x, times, gamma=gamma, seed=2))


def test_programs_of_different_maps_are_not_mixed_up():
    """A run is kept for the next map with the same coefficients, and for no other."""
    x, times = noise.normal((4, 3), 1), [1.2, 0.5, 0.0]
    for sd in (0.5, 0.9):
        f = cm.TrigFlowMap(Net(), sd, second="end")
        step = f(f(x, 1.2, 0.5), 0.5, 0.0)
        torch.testing.assert_close(cm.flow_map_sample(f, x, times), step)
    one, two = (cm.AverageVelocity(Net(), second=second) for second in ("end", "length"))
    for f in (one, two):
        torch.testing.assert_close(
            cm.flow_map_sample(f, x, [1.0, 0.5, 0.0]), f(f(x, 1.0, 0.5), 0.5, 0.0)
        )
    assert one.signature == cm.AverageVelocity(Net()).signature != two.signature

    class Half(cm.AverageVelocity):
        def skip_out(self, t, s):
            return 1.0, 0.5 * (s - t)

    half = Half(Net())
    assert half.signature is None
    torch.testing.assert_close(cm.flow_map_sample(half, x, [1.0, 0.0]), half(x, 1.0))


def test_half_precision_keeps_times_apart():
    """t - s reaches the network in float32 where x is bfloat16."""
    told = []

    def net(x, t, s):
        told.append((t.dtype, float(t[0]), float(s[0])))
        return x

    x = noise.normal((4, 3), 1).bfloat16()
    for f in (cm.AverageVelocity(net), lambda x, t, s: net(x, t, s)):
        y = cm.flow_map_sample(f, x, [1.0, 0.999])
        assert y.dtype is torch.bfloat16
    assert told == [(torch.float32, 1.0, pytest.approx(0.999, abs=1e-7))] * 2


def test_capture_parts_callback_and_gradient():
    f, x, times = cm.AverageVelocity(Net()), noise.normal((4, 3), 1), [1.0, 0.6, 0.2, 0.0]
    whole = cm.flow_map_sample(f, x, times, gamma=0.5, seed=7)
    run = cm.capture(cm.flow_map_sample, f, x, times, gamma=0.5)
    assert_same_bits(run(x, seed=7), whole)
    middle = cm.flow_map_sample(f, x, times, gamma=0.5, seed=7, stop=1)
    assert_same_bits(cm.flow_map_sample(f, middle, times, gamma=0.5, seed=7, start=1), whole)
    seen = []
    y = cm.flow_map_sample(f, x, times, gamma=0.5, seed=7, callback=seen.append)
    torch.testing.assert_close(y, whole)
    assert [e["sigma"] for e in seen] == times[:-1]
    for entry, t, s in zip(seen, times, [0.6, 0.2, 0.0], strict=False):
        below = f.coordinates.level(math.sqrt(0.75) * f.coordinates.ratio(s))
        torch.testing.assert_close(entry["denoised"], f(entry["x"], t, below))
    _, info = cm.flow_map_sample(f, x, times[:-1], gamma=0.5, seed=7, log_prob=True)
    assert info.log_prob.shape == (2, 4) and info.log_prob.isfinite().all()
    z = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cm.flow_map_sample(f, z, times, grad=True).sum(), z)
    expected = x.clone().requires_grad_()
    state = expected
    for t, s in pairwise(times):
        state = f(state, t, s)
    (right,) = torch.autograd.grad(state.sum(), expected)
    torch.testing.assert_close(grad, right)


def test_samples_do_not_depend_on_their_batch():
    f, x, times = cm.AverageVelocity(Net()), noise.normal((6, 3), 1, dtype=F64), [1.0, 0.4, 0.0]
    whole = cm.flow_map_sample(f, x, times, gamma=0.7, seed=4)
    part = cm.flow_map_sample(f, x[2:], times, gamma=0.7, seed=noise.Key(4, offset=2))
    torch.testing.assert_close(part, whole[2:])
    assert cm.flow_map_sample(f, x[:0], times, gamma=0.7, seed=4).shape == (0, 3)


@each_map
def test_the_closer_look_passes_what_is_right(name):
    x = latent(name, 40)
    plain = lambda x, t, s, f=MAPS[name]: f(x, t, s)  # noqa: E731
    plain.coordinates = MAPS[name].coordinates
    for f in (MAPS[name], plain):
        cm.flow_map_sample(f, x, grid(name, 3), gamma=0.5, seed=1, check=True)


def test_the_closer_look_finds_noise():
    x = 40.0 * noise.normal((40, 3), 5)
    with pytest.raises(ValueError, match="noise"):
        cm.flow_map_sample(lambda x, t, s: x / column(t, x), x, [40.0, 0.0], check=True)


def test_a_wrong_row_is_found_out():
    """A formula on a map must give constant data back, as every formula must."""

    def lost(step: Step):
        """Half of a flow map."""
        return 0.5 * step.map(step.x, step.sigma, step.to)

    with pytest.raises(ArithmeticError, match="weights must sum to 1 for constant D"):
        sampler_of(lost, space="map", model="f")(MAPS["karras"], latent("karras"), [40.0, 1.0])

    def noisy(step: Step):
        """A flow map with more noise than that of its level."""
        return step.map(step.x, step.sigma, step.to) + step.z()

    with pytest.raises(ArithmeticError, match="the spread must be 1"):
        run = sampler_of(noisy, space="map", model="f", noise="fresh")
        run(MAPS["karras"], latent("karras"), [40.0, 1.0])


# --- bad input -----------------------------------------------------------------------------------

ONE = cm.ConsistencyFunction(wave, 0.5, 0.01)
X = torch.ones(2, 3)
BAD = {
    "gamma above 1": ({"gamma": 1.5}, ValueError, "gamma must be in [0, 1]; got 1.5"),
    "gamma text": ({"gamma": "1"}, TypeError, "gamma must be a number"),
    "one time": ({"times": [1.0]}, ValueError, "times must have at least 2 levels; got 1"),
    "up": ({"times": [0.5, 1.0]}, ValueError, "times must be strictly descending; got 1 after"),
    "negative": ({"times": [1.0, -0.5]}, ValueError, "times must not be negative; got -0.5"),
    "outside": ({"times": [1.5, 0.0]}, ValueError, "times must lie in [0, 1] for a flow map in fl"),
    "tiny": ({"times": [1.0, 1e-60]}, ValueError, "times must lie in [1e-50, 1e+50] or be 0; got"),
    "denormal": ({"times": [1.0, 1e-45]}, ValueError, "times must be levels that float32 holds"),
    "one place": ({"f": lambda x, t: x}, TypeError, "f must take two times, f(x, t, s, **extra_ar"),
    "no function": ({"f": None}, TypeError, "f must be callable; got None"),
    "shape": ({"f": lambda x, t, s: x[:1]}, ValueError, "f must return the shape of x, [2, 3]"),
    "precision": ({"f": lambda x, t, s: x.double()}, TypeError, "f must return the dtype of x"),
    "an integer x": ({"x": torch.ones(2, 3).long()}, TypeError, "x must be float64, float32"),
    "a consistency function": (
        {"f": ONE, "times": [20.0, 1.0, 0.0]},
        ValueError,
        "gamma must be 1 for a function f of one time",
    ),
    "below its end": (
        {"f": ONE, "times": [20.0, 0.001, 0.0], "gamma": 1.0},
        ValueError,
        "times must not be below sigma_min of f, 0.01; got 0.001",
    ),
    "unknown": ({"eta": 1.0}, TypeError, "flow_map_sample() got an unexpected keyword argument"),
}


@pytest.mark.parametrize(("given", "error", "text"), BAD.values(), ids=BAD)
def test_bad_input(given, error, text):
    call = {"f": cm.AverageVelocity(Net()), "x": X, "times": [1.0, 0.0], "seed": 0} | given
    with pytest.raises(error, match=re.escape(text)):
        cm.flow_map_sample(call.pop("f"), call.pop("x"), call.pop("times"), **call)
