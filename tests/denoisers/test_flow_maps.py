"""Flow maps: coefficients, identities, exact maps, wrappers and bad input."""

import copy
import io
import math
import pickle
import re

import pytest
import torch
from torch import nn

import cmsolvers as cm
from cmsolvers.denoisers import AverageVelocity, FlowMap, TrajectoryFunction, TrigFlowMap
from cmsolvers.processes.coordinates import FLOW, KARRAS, Coordinates
from support.columns import column
from support.flow_maps import SD, carried, exact_maps, velocity

F64 = torch.float64
X = torch.tensor([[-1.0, 0.2], [0.4, 0.9], [1.3, -0.3], [0.1, 0.6]], dtype=F64)
T = torch.tensor([0.9, 0.7, 0.4, 0.2], dtype=F64)
S = torch.tensor([0.5, 0.0, 0.35, 0.1], dtype=F64)


class Net(nn.Module):
    """F of x and any times, smooth in all of them."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(2, 2)

    def forward(self, x, t, s=None, gain=1.0):
        told = t if s is None else t * t + 0.7 * s
        made = nn.functional.linear(x, self.layer.weight.to(x.dtype), self.layer.bias.to(x.dtype))
        return gain * torch.tanh(made + told[:, None].to(x.dtype))


class OneTime(nn.Module):
    def forward(self, x, t):
        return x * t[:, None].to(x.dtype)


MAKE = {
    "flow": lambda net: AverageVelocity(net),
    "length": lambda net: AverageVelocity(net, second="length"),
    "karras": lambda net: AverageVelocity(net, "karras", c_noise=lambda t: 0.5 * t),
    "trigflow": lambda net: TrigFlowMap(net, 0.6, second="end"),
    "ctm": lambda net: TrajectoryFunction(net, 0.6),
}
each_map = pytest.mark.parametrize("kind", MAKE)


def map_of(kind):
    return MAKE[kind](Net())


# --- coefficients --------------------------------------------------------------------------------


def derivative(function, at, which):
    """Of both coefficients, by float64 autodiff; one level per sample."""
    levels = [level.clone().requires_grad_() for level in at]
    found = []
    for value in function(*levels):
        value = torch.as_tensor(value, dtype=F64) + 0 * sum(levels)
        (grad,) = torch.autograd.grad(value.sum(), levels[which], retain_graph=True)
        found.append(grad)
    return found


@each_map
@pytest.mark.parametrize("which", [0, 1], ids=["start", "end"])
def test_rates_are_the_derivatives(kind, which):
    f = map_of(kind)
    rates = (f.start_rates, f.end_rates)[which](T, S)
    for rate, right in zip(rates, derivative(f.skip_out, (T, S), which), strict=True):
        torch.testing.assert_close(torch.as_tensor(rate).expand(4).double(), right)


@each_map
def test_numbers_and_tensors_give_the_same_coefficients(kind):
    f = map_of(kind)
    for call in (f.skip_out, f.start_rates, f.end_rates, f.times):
        rows = [call(float(t), float(s)) for t, s in zip(T, S, strict=True)]
        assert all(isinstance(value, float) for row in rows for value in row)
        for k, column_ in enumerate(call(T, S)):
            right = torch.tensor([row[k] for row in rows], dtype=F64)
            torch.testing.assert_close(torch.as_tensor(column_).expand(4).double(), right)


PROCESSES = [
    cm.Karras(),
    cm.RectifiedFlow(),
    cm.TrigFlow(0.7),
    cm.VP(),
    cm.SubVP(),
    cm.VP(beta_min=0.0, beta_max=3.0),
]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_pair_rates_are_the_derivatives_of_alpha_and_sigma(process):
    """SubVP and VP in time, too: a sample moves by alpha' x_0 + sigma' z."""
    path = Coordinates(process)
    t = torch.tensor([1e-3, 0.1, 0.5, 0.9, 1.0], dtype=F64, requires_grad=True)
    for function, rate in zip((path.alpha, path.sigma), path.pair_rates(t.detach()), strict=True):
        value = function(t) + 0 * t
        (right,) = torch.autograd.grad(value.sum(), t)
        torch.testing.assert_close(rate, right, rtol=1e-9, atol=1e-12)
    alpha_rate, sigma_rate = path.pair_rates(0.5)
    assert isinstance(alpha_rate, float) and isinstance(sigma_rate, float)
    both = path.pair_rates(torch.tensor([0.5], dtype=F64))
    assert (alpha_rate, sigma_rate) == pytest.approx([float(rate) for rate in both], rel=1e-12)


def test_pair_rates_at_the_ends():
    """Flow at 0 and 1, TrigFlow at 0: finite; sigma' of VP is infinite at 0, of SubVP 0.1."""
    assert FLOW.pair_rates(0.0) == FLOW.pair_rates(1.0) == (-1.0, 1.0)
    assert KARRAS.pair_rates(0.0) == (0.0, 1.0)
    assert Coordinates(cm.TrigFlow(0.7)).pair_rates(0.0) == (0.0, 0.7)
    assert Coordinates(cm.VP()).pair_rates(0.0)[1] == math.inf


# --- the map -------------------------------------------------------------------------------------


@each_map
def test_a_map_from_t_to_t_is_the_identity(kind):
    f = map_of(kind)
    for dtype in (F64, torch.float32, torch.bfloat16):
        x = X.to(dtype)
        assert torch.equal(f(x, T, T), x)
    assert torch.equal(f(X, 0.4, 0.4), X)


@each_map
def test_the_velocity_is_the_derivative_at_the_diagonal(kind):
    f = map_of(kind)
    _, right = torch.func.jvp(lambda s: plain(f, X, T, s), (T,), (torch.ones_like(T),))
    torch.testing.assert_close(f.velocity(X, T), right)
    assert not torch.allclose(f.velocity(X, T), f.velocity(X, 0.9 * T))


def plain(f, x, t, s):
    """f in plain torch."""
    a, b = (column(torch.as_tensor(w).expand(len(t)), x) for w in f.skip_out(t, s))
    return a * x + b * f.raw(x, t, s)


@each_map
def test_the_call_is_the_formula(kind):
    f = map_of(kind)
    torch.testing.assert_close(f(X, T, S), plain(f, X, T, S), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(f(X, T), plain(f, X, T, torch.zeros_like(T)))
    assert torch.equal(f(X, T, S, output="raw"), f.raw(X, T, S))
    assert not torch.equal(f(X, T, S, gain=0.5), f(X, T, S))
    whole = f(X, 0.5, 0.2)
    torch.testing.assert_close(whole, f(X, torch.full_like(T, 0.5), torch.tensor(0.2)))


def test_what_networks_are_told():
    told = []

    def net(x, *times):
        told.append((x, *times))
        return x

    AverageVelocity(net)(X.float(), T, S)
    AverageVelocity(net, second="length", c_noise=lambda t: 1000 * t)(X.float(), T, S)
    TrigFlowMap(net, 0.5)(X, T)
    TrajectoryFunction(net, 0.5, 0.002, c_noise="published")(X, 2.0, 0.0)
    AverageVelocity(net, dtype=torch.bfloat16)(X.float(), T, S)
    assert torch.equal(told[0][1], T.float()) and torch.equal(told[0][2], S.float())
    assert torch.equal(told[1][1], (1000 * T).float()) and torch.equal(told[1][2], (T - S).float())
    assert torch.equal(told[2][0], X / 0.5) and torch.equal(told[2][1], T) and len(told[2]) == 2
    torch.testing.assert_close(told[3][1], torch.full_like(T, 250 * math.log(2)))
    torch.testing.assert_close(told[3][2], torch.full_like(T, 250 * math.log(0.002)))
    assert told[4][0].dtype is torch.bfloat16 and told[4][1].dtype is torch.float32


# --- relations to what is known ------------------------------------------------------------------


def test_a_trajectory_function_is_edm_on_its_diagonal_and_ctms_formula():
    net = Net()
    f, d = TrajectoryFunction(net, 0.6), cm.EDM(lambda x, c: net(x, c, c), 0.6)
    level = torch.tensor([4.0, 1.0, 0.3, 0.1], dtype=F64)
    slope = (X - d(X, level)) / level[:, None]
    torch.testing.assert_close(f.velocity(X, level), slope)
    s = 0.4 * level
    g = cm.EDM(lambda x, c: net(x, c, 0.25 * s.log()), 0.6)(X, level)
    torch.testing.assert_close(f(X, level, s), 0.4 * X + 0.6 * g)  # Kim et al. (2024), eq. 4


def test_trigflow_of_one_time_is_from_trigflow():
    net = Net()
    f, d = TrigFlowMap(net, 0.6), cm.denoisers.from_trigflow(net, 0.6)
    sigma = 0.6 * T.tan()
    torch.testing.assert_close(f(X, T), d(X / T.cos()[:, None], sigma))
    two = TrigFlowMap(net, 0.6, second="end")
    flow = cm.denoisers.from_trigflow(lambda x, t: net(x, t, t), 0.6)
    path = two.coordinates
    clean = flow(X / T.cos()[:, None], sigma)
    torch.testing.assert_close(two.velocity(X, T), path.slope(X, clean, T[:, None]))


def test_an_average_velocity_is_from_flow_on_its_diagonal():
    net = Net()
    f, d = AverageVelocity(net), cm.denoisers.from_flow(lambda x, t: net(x, t, t))
    torch.testing.assert_close(f.velocity(X, T), (X - d(X, T)) / T[:, None])


@pytest.mark.parametrize("name", exact_maps())
def test_an_exact_network_gives_the_exact_map(name):
    f = exact_maps()[name]
    for s in (S, 1.1 * T, torch.zeros_like(T)):
        torch.testing.assert_close(f(X, T, s), carried(f.coordinates, X, T, s))
    torch.testing.assert_close(f.velocity(X, T), velocity(f.coordinates, X, T))
    middle = f(X, T, 0.6 * T)
    torch.testing.assert_close(f(middle, 0.6 * T, 0.2 * T), f(X, T, 0.2 * T))  # semigroup
    assert not torch.allclose(f(middle, 0.5 * T, 0.2 * T), f(X, T, 0.2 * T), rtol=1e-3)


def test_edm_scalings_are_exact_for_a_gaussian_of_sigma_data():
    """CTM's g with F = 0 is the denoiser, so that one small step is right to second order."""
    f = TrajectoryFunction(lambda x, t, s: 0 * x, SD, 1e-9, c_noise="sigma")
    level = torch.tensor([4.0, 1.0, 0.3, 0.1], dtype=F64)
    errors = []
    for h in (0.02, 0.01):
        right = X * ((SD**2 + (level * (1 - h)) ** 2) / (SD**2 + level**2)).sqrt()[:, None]
        errors.append((f(X, level, level * (1 - h)) - right).abs().max())
    assert 3.7 < errors[0] / errors[1] < 4.3


# --- modules -------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """As DistributedDataParallel wraps: all arguments go through."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs, **kwargs):
        return self.module(*inputs, **kwargs)


@each_map
def test_wrapped_and_compiled_maps(kind):
    f = map_of(kind)
    for outer in (Wrapped(f), torch.compile(f, backend="eager")):
        assert torch.equal(outer(X, T, S, output="raw"), f.raw(X, T, S))
        torch.testing.assert_close(outer(X, T, S), f(X, T, S))
        times = [0.9, 0.4, 0.0]
        got = cm.flow_map_sample(outer, X, times)
        torch.testing.assert_close(got, cm.flow_map_sample(f, X, times))


@each_map
def test_copies_and_files(kind):
    f = map_of(kind)
    assert set(f.state_dict()) == {"net.layer.weight", "net.layer.bias"}
    twin = copy.deepcopy(f)
    assert torch.equal(twin(X, T, S), f(X, T, S)) and twin.net is not f.net
    with torch.no_grad():
        twin.net.layer.weight.mul_(2.0)
    assert not torch.equal(twin(X, T, S), f(X, T, S))
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    file.seek(0)
    f.load_state_dict(torch.load(file))
    assert torch.equal(twin(X, T, S), f(X, T, S))
    if kind != "karras":  # its c_noise is a lambda
        assert torch.equal(pickle.loads(pickle.dumps(f))(X, T, S), f(X, T, S))


def test_training_mode_and_gradients():
    net = Net().eval()
    assert not AverageVelocity(net).training and AverageVelocity(Net()).training
    f = AverageVelocity(net)
    f(X, T, S).sum().backward()
    got = net.layer.weight.grad.clone()
    net.zero_grad()
    plain(f, X, T, S).sum().backward()
    torch.testing.assert_close(got, net.layer.weight.grad)


def test_empty_batches():
    for kind in MAKE:
        assert map_of(kind)(X[:0], T[:0], S[:0]).shape == (0, 2)


# --- bad input -----------------------------------------------------------------------------------

BAD = {
    "one time": (lambda: AverageVelocity(OneTime()), TypeError, "net must take two times"),
    "a function": (lambda: TrajectoryFunction(lambda x, t: x), TypeError, "takes x, t"),
    "no function": (lambda: AverageVelocity(3), TypeError, "net must be callable; got 3"),
    "second": (lambda: AverageVelocity(Net(), second="s"), ValueError, 'second must be "end"'),
    "dtype": (lambda: AverageVelocity(Net(), dtype=torch.int64), TypeError, "dtype must be None"),
    "path": (lambda: AverageVelocity(Net(), cm.VE()), ValueError, "coordinates must be those of a"),
    "sigma_data": (lambda: TrigFlowMap(Net(), 0.0), ValueError, "sigma_data must be positive"),
    "sigma_max": (lambda: TrigFlowMap(Net(), sigma_max=0.001), ValueError, "sigma_min must be bel"),
    "c_noise": (lambda: TrajectoryFunction(Net(), c_noise="x"), ValueError, "c_noise must be"),
    "a number": (lambda: TrajectoryFunction(Net(), sigma_min=0), ValueError, "sigma_min must be"),
    "t outside": (
        lambda: map_of("flow")(X, 1.5, 0.0),
        ValueError,
        "t must lie in [0, 1] for a flow map in flow coordinates; got 1.5",
    ),
    "s outside": (lambda: map_of("trigflow")(X, 0.5, 1.6), ValueError, "s must lie in [0, 1.56"),
    "s negative": (lambda: map_of("karras")(X, 0.5, -0.1), ValueError, "s must not be negative"),
    "shape": (lambda: map_of("flow")(X, T[:2], S), ValueError, "t must have shape [] or [B] = [4]"),
    "integers": (lambda: map_of("flow")(X, T.long(), S), TypeError, "t must be floating"),
    "an integer x": (lambda: map_of("flow")(X.long(), T, S), TypeError, "x must be float64"),
    "output": (lambda: map_of("flow")(X, T, S, output="F"), ValueError, "output must be one of"),
    "s of one time": (
        lambda: TrigFlowMap(Net())(X, 0.5, 0.1),
        ValueError,
        "s must be 0 for a network of one time; got 0.1",
    ),
    "velocity of one time": (
        lambda: TrigFlowMap(Net()).velocity(X, 0.5),
        ValueError,
        "a flow map of one time has no velocity",
    ),
    "what it returns": (
        lambda: AverageVelocity(lambda x, t, s: x[:1])(X, T, S),
        ValueError,
        "net must return the shape of x, [4, 2]; it returned [1, 2]",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_times_in_half_precision_stand_for_their_values():
    """A level in float16 or bfloat16 is the number that it holds; what is computed of it is not."""
    f = map_of("trigflow")
    for dtype in (torch.float16, torch.bfloat16):
        t, s = T.to(dtype), S.to(dtype)
        assert torch.equal(f(X, t, s), f(X, t.double(), s.double()))


def test_a_map_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        FlowMap(Net(), FLOW, lambda t: t)
