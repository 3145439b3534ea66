"""Denoisers as modules: parameters, state, copies, hooks, averages, distributed wrapping."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import cmsolvers as cm
from cmsolvers import denoisers
from cmsolvers.denoisers import (
    EDM,
    ConsistencyFunction,
    Preconditioned,
    autoguided,
    clipped,
    conversions,
    from_eps,
    from_flow,
    from_score,
    from_trigflow,
    from_v,
    from_x0,
    guided,
    thresholded,
)
from cmsolvers.denoisers.composed import denoised, folds, opens
from cmsolvers.denoisers.oracles import Gaussian
from cmsolvers.processes import DDPM
from cmsolvers.training import EMA


class Net(nn.Module):
    """A linear layer, a buffer, and dropout that only training sees."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3]))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, c, label=None):
        y = self.dropout(self.linear(x)) + self.shift + c[:, None].to(x.dtype).sin()
        return y if label is None else y + label[:, None].to(x.dtype)


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


LABELS = torch.tensor([0.3, -0.2, 0.5, 0.1])
NONE = torch.zeros(4)
X = torch.linspace(-2.0, 2.0, 12).reshape(4, 3)
CHAIN = DDPM()

MAKERS = {
    "EDM": EDM,
    "ConsistencyFunction": ConsistencyFunction,
    "from_eps": partial(from_eps, process=cm.Karras()),
    "from_v": partial(from_v, process=cm.VP()),
    "from_x0": partial(from_x0, process=cm.Karras()),
    "from_score": partial(from_score, process=cm.Karras()),
    "from_flow": from_flow,
    "from_trigflow": from_trigflow,
    "chain": lambda n: from_v(n, process=CHAIN),
    "clipped": lambda n: clipped(EDM(n), -0.5, 0.5),
    "thresholded": lambda n: thresholded(EDM(n), 0.8, 0.3),
    "guided": lambda n: guided(
        EDM(n), 2.0, conditional={"label": LABELS}, unconditional={"label": NONE}
    ),
    "weak": lambda n: autoguided(EDM(n), EDM(net(7)), 2.0),
    "nested": lambda n: clipped(
        guided(
            EDM(n),
            LABELS,
            conditional={"label": LABELS},
            unconditional={"label": NONE},
            batched=False,
        )
    ),
}
PREFIX = {
    "clipped": "inner.net.",
    "thresholded": "inner.net.",
    "guided": "denoiser.net.",
    "weak": "denoiser.net.",
    "nested": "inner.denoiser.net.",
}
each = pytest.mark.parametrize("name", MAKERS)


def make(name, network=None):
    return MAKERS[name](net() if network is None else network).eval()


def test_the_table_has_every_wrapper():
    makers = {name for name in denoisers.__all__ if name.startswith("from_")}
    assert makers | {"EDM", "ConsistencyFunction", "guided", "clipped", "thresholded"} <= set(
        MAKERS
    )


@each
def test_parameters_and_state(name):
    network = net()
    denoiser = make(name, network)
    theirs = [*network.parameters()] + ([*denoiser.weak.parameters()] if name == "weak" else [])
    assert [id(p) for p in denoiser.parameters()] == [id(p) for p in theirs]
    prefix = PREFIX.get(name, "net.")
    keys = {prefix + key for key in network.state_dict()}
    if name == "weak":
        keys |= {"weak.net." + key for key in network.state_dict()}
    assert denoiser.state_dict().keys() == keys
    other = make(name, net(3))
    assert not torch.equal(other(X, 0.7), denoiser(X, 0.7))
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(other(X, 0.7), denoiser(X, 0.7))


@each
def test_moves(name):
    network = net()
    denoiser = make(name, network).to(torch.float64)
    assert network.linear.weight.dtype is torch.float64
    assert network.shift.dtype is torch.float64
    assert denoiser(X.double(), 0.7).dtype is torch.float64


@each
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))], ids=["deepcopy", "pickle"]
)
def test_copies_answer_alike_and_share_nothing(name, copied):
    denoiser = make(name)
    again = copied(denoiser)
    assert type(again) is type(denoiser) and not again.training
    expected = denoiser(X, 0.7)
    assert torch.equal(again(X, 0.7), expected)
    assert again.signature == denoiser.signature
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1.0)
    assert torch.equal(denoiser(X, 0.7), expected)
    assert not torch.equal(again(X, 0.7), expected)


@each
def test_training_mode(name):
    network = net().eval()
    denoiser = MAKERS[name](network)
    if name == "weak":
        denoiser.weak.eval()
    else:
        assert not denoiser.training  # as the network was
    quiet = denoiser.eval()(X, 0.7)
    assert torch.equal(quiet, denoiser(X, 0.7))
    assert denoiser.train().training and network.training
    torch.manual_seed(0)
    assert not torch.equal(denoiser(X, 0.7), quiet)
    denoiser.eval()
    assert not network.training
    assert torch.equal(denoiser(X, 0.7), quiet)


def test_a_wrapper_of_callables_is_in_training_mode_as_new_modules_are():
    assert EDM(lambda x, c: x).training
    assert clipped(Gaussian(0.5)).training


@each
def test_averages(name):
    denoiser = make(name)
    ema = EMA(denoiser, 0.5)
    before = [p.clone() for p in denoiser.parameters()]
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(1.0)
    ema.update(denoiser)
    for average, old in zip(ema.module.parameters(), before, strict=True):
        torch.testing.assert_close(average, old + 0.5)
    assert ema.module(X, 0.7).isfinite().all()


@each
def test_gradients_reach_the_network(name):
    network = net()
    denoiser = make(name, network)
    denoiser(X, 0.7).square().sum().backward()
    # With labels 0 and 1 - w = 1 - label every side has a weight.
    assert network.linear.weight.grad.abs().sum() > 0


def test_a_side_that_stands_twice_appears_once():
    side = EDM(net())
    for denoiser in (
        guided(side, 2.0, unconditional={}),
        guided(side, 2.0, weak=side),
        autoguided(side, side, 2.0),
    ):
        assert denoiser.sides[0] is denoiser.sides[1] is side
        assert len(list(denoiser.parameters())) == 2
        assert all(key.startswith("denoiser.net.") for key in denoiser.state_dict())
        first, second = copy.deepcopy(denoiser).sides
        assert first is second


def test_what_belongs_to_samples_is_no_state():
    denoiser = make("nested").to(torch.float64)
    assert list(denoiser.buffers()) == [denoiser.inner.denoiser.net.shift]
    assert denoiser.inner.own[0]["label"] is LABELS


def test_plain_callables_stay_attributes():
    def plain(x, c):
        return x * c[:, None]

    for denoiser in (EDM(plain), clipped(Gaussian(0.5)), autoguided(Gaussian(0.5), plain, 2.0)):
        assert not denoiser.state_dict() and not list(denoiser.parameters())
        assert not list(denoiser.children()) or denoiser.inner
    assert EDM(plain).net is plain


def test_predictions_are_modules():
    network = net().eval()
    for back in (
        conversions.to_eps(EDM(network)),
        conversions.to_v(EDM(network)),
        conversions.to_edm(EDM(network)),
        conversions.to_trigflow(EDM(network)),
    ):
        assert [id(p) for p in back.parameters()] == [id(p) for p in network.parameters()]
        assert not back.training
        assert torch.equal(copy.deepcopy(back)(X, 0.3), back(X, 0.3))
    around = from_v(conversions.to_v(EDM(network), process=CHAIN), process=CHAIN)
    assert "net.denoiser.net.linear.weight" in around.state_dict()
    torch.testing.assert_close(around(X, 0.7), EDM(network)(X, 0.7), rtol=1e-5, atol=1e-5)


def test_a_learned_c_noise_is_a_submodule():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(0.25, dtype=torch.float64))

        def forward(self, sigma):
            return self.gain * torch.as_tensor(sigma, dtype=torch.float64).log()

    denoiser = EDM(net().eval(), c_noise=Learned())
    assert "c_noise.gain" in denoiser.state_dict()
    torch.testing.assert_close(denoiser(X, 0.7), EDM(denoiser.net)(X, 0.7))
    denoiser(X, 0.7).sum().backward()
    assert denoiser.c_noise.gain.grad != 0
    assert denoiser.signature is None  # training changes the coefficients


# --- who is called ----------------------------------------------------------------------------


class Clips(EDM):
    """A forward of its own."""

    def forward(self, x, sigma, **extra):
        return super().forward(x, sigma, **extra).clamp(-0.1, 0.1)


class CallClips(EDM):
    """The same by the other door."""

    def __call__(self, x, sigma, **extra):
        return super().__call__(x, sigma, **extra).clamp(-0.1, 0.1)


def halve(module, args, output):
    return output / 2


def hooked(denoiser):
    denoiser.register_forward_hook(halve)
    return denoiser


def patched(denoiser):
    written = denoiser.forward
    denoiser.forward = lambda *args, **extra: written(*args, **extra) / 2
    return denoiser


def compiled(denoiser):
    denoiser.compile(backend="eager")
    return denoiser


def test_what_a_sampler_may_open():
    assert (
        folds(EDM(net()))
        and folds(ConsistencyFunction(net()))
        and folds(from_v(net(), process=cm.VP()))
    )
    network = net()
    network.register_forward_hook(halve)  # the network is called either way
    assert folds(EDM(network))
    pre = EDM(net())
    handle = pre.register_forward_pre_hook(lambda module, args: None)
    backward = EDM(net())
    backward.register_full_backward_hook(lambda module, inputs, outputs: None)
    for denoiser in (
        Clips(net()),
        CallClips(net()),
        hooked(EDM(net())),
        pre,
        backward,
        patched(EDM(net())),
        compiled(EDM(net())),
        torch.compile(EDM(net()), backend="eager"),
        clipped(EDM(net())),
        Gaussian(0.5),
    ):
        assert not folds(denoiser)
    handle.remove()
    assert folds(pre)
    assert opens(clipped(EDM(net()))) and opens(make("guided"))
    for denoiser in (hooked(clipped(EDM(net()))), patched(make("guided")), EDM(net())):
        assert not opens(denoiser)


@pytest.mark.parametrize("change", [hooked, patched])
def test_a_side_with_hooks_is_called(change):
    side, inner = change(EDM(net().eval())), change(clipped(EDM(net().eval()), -0.3, 0.3))
    level = torch.full((4,), 0.7)
    by_hand = (EDM(side.net)(X, level) / 2).clamp(-0.3, 0.3)
    for sigma in (0.7, level):
        torch.testing.assert_close(clipped(side, -0.3, 0.3)(X, sigma), by_hand)
        torch.testing.assert_close(clipped(inner)(X, sigma), inner(X, sigma))
    assert torch.equal(denoised(inner, X, level, 0.7, {}), inner(X, level))


def test_samplers_call_a_preconditioned_network_with_hooks():
    sigmas = cm.karras_sigmas(4, 0.05, 20.0)
    network = net().eval()
    plain, half = EDM(network), hooked(EDM(network))
    assert not torch.equal(cm.euler_pf_ode(plain, X, sigmas), cm.euler_pf_ode(half, X, sigmas))
    by_hand = cm.euler_pf_ode(lambda x, s: plain(x, s) / 2, X, sigmas)
    torch.testing.assert_close(cm.euler_pf_ode(half, X, sigmas), by_hand)


def test_hooks_of_a_direct_call_run():
    seen = []
    denoiser = make("guided")
    denoiser.register_forward_pre_hook(lambda module, args: seen.append("before"))
    denoiser.register_forward_hook(lambda module, args, output: seen.append("after"))
    denoiser(X, 0.7)
    assert seen == ["before", "after"]


def test_functional_call():
    denoiser = make("EDM")
    state = {key: value + 0.5 for key, value in denoiser.state_dict().items()}
    got = torch.func.functional_call(denoiser, state, (X, 0.7))
    denoiser.load_state_dict(state)
    assert torch.equal(got, denoiser(X, 0.7))


def test_a_network_put_in_later_is_the_one_that_is_called():
    denoiser = make("EDM")
    denoiser.net = net(5).eval()
    assert torch.equal(denoiser(X, 0.7), EDM(denoiser.net)(X, 0.7))


def test_making_one_compiles():
    torch._dynamo.reset()
    network = net().eval()

    def loss(x, sigma):
        return (EDM(network)(x, sigma) - from_trigflow(network)(x, sigma)).square().sum()

    sigma = torch.full((4,), 0.7)
    whole = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(X, sigma), loss(X, sigma))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        network = net().eval()
        denoiser = EDM(network)
        parallel = nn.parallel.DistributedDataParallel(denoiser)
        level = torch.full((4,), 0.7)
        assert torch.equal(parallel(X, level), denoiser(X, level))
        parallel(X, level).square().sum().backward()
        grads = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
        denoiser(X, level).square().sum().backward()
        for got, expected in zip(grads, network.parameters(), strict=True):
            torch.testing.assert_close(got, expected.grad)
        assert "module.net.linear.weight" in parallel.state_dict()
    finally:
        torch.distributed.destroy_process_group()


# --- the shifted boundary ---------------------------------------------------------------------


def test_consistency_coefficients_have_the_bits_of_the_formula():
    """With sigma_min in float32 only where the level is exactly that."""
    sd, end = 0.4, 0.003
    f = ConsistencyFunction(lambda x, c: x, sd, end)
    rounded = torch.tensor(end, dtype=torch.float32).item()
    levels = [0.001, end, rounded, 0.0031, 0.7, 80.0]
    together = f.coefficients(torch.tensor(levels, dtype=torch.float64))
    for k, s in enumerate(levels):
        step = s - (rounded if s == rounded else end)
        root = math.sqrt(s * s + sd * sd)
        expected = sd * sd / (step * step + sd * sd), step * sd / root, 1.0 / root
        assert f.coefficients(s)[:3] == expected
        assert tuple(c[k].item() for c in together[:3]) == expected
    assert f.coefficients(rounded)[:2] == f.coefficients(end)[:2] == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("end", [0.5, 0.002])
def test_the_derivative_by_sigma_goes_through_the_boundary(dtype, end):
    """d c_out / d sigma = sd / sqrt(e^2 + sd^2) there, in reverse and forward mode."""
    f = ConsistencyFunction(lambda x, c: torch.full_like(x, 3.0), 0.5, end)
    x = torch.ones(4, 1, dtype=dtype)
    rounded = [torch.tensor(end).to(t).item() for t in (torch.float32, torch.float16)]
    sigma = torch.tensor([end, *rounded, 2 * end], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(f(x, sigma).sum(), sigma)
    s = sigma.detach().double()[:3]
    expected = 3.0 * 0.5 / (s**2 + 0.25).sqrt()
    torch.testing.assert_close(slope[:3].double(), expected, rtol=1e-6, atol=0.0)
    assert abs(slope[3].item() - expected[0].item()) > 1e-6 * expected[0].item()
    ones = torch.ones(4, dtype=dtype)
    _, tangent = torch.func.jvp(lambda t: f(x, t)[:, 0], (sigma.detach(),), (ones,))
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=0.0)


# --- what a network returned ------------------------------------------------------------------


class Output:
    def __init__(self, sample):
        self.sample = sample


BAD = {
    "sample": (Output, r"of type Output: its \.sample is one.* lambda x, t: net\(x, t\)\.sample$"),
    "tuple": (lambda x: (None, x), r"of type tuple: its \[1\] is one.*: net\(x, t\)\[1\]$"),
    "dict": (lambda x: {"out": x}, r"of type dict: its \['out'\] is one.*net\(x, t\)\['out'\]$"),
    "none": (lambda x: None, " None$"),
    "empty": (lambda x: [3], " an object of type list$"),
    "method": (lambda x: torch.distributions.Normal(0, 1), "an object of type Normal$"),
}


@pytest.mark.parametrize("wrap, match", BAD.values(), ids=BAD)
def test_the_error_says_how_to_unwrap_an_output(wrap, match):
    with pytest.raises(TypeError, match="net must return a torch.Tensor; it returned.*" + match):
        EDM(lambda x, c: wrap(x))(X, 0.7)


def test_the_error_for_denoisers_and_in_samplers():
    match = r"denoiser must return .*: its \.sample is one, wrap it as lambda x, sigma: denoiser"
    with pytest.raises(TypeError, match=match):
        clipped(lambda x, s: Output(x))(X, 0.7)
    with pytest.raises(TypeError, match=match):
        cm.euler_pf_ode(lambda x, s: Output(x), X, [1.0, 0.5])


def test_subclasses_may_set_what_they_like():
    class Own(Preconditioned):
        def __init__(self, network):
            super().__init__(network, lambda s: (0.0, 1.0, 1.0, s))
            self.sigma_min = 0.1

    assert Own(net()).sigma_min == 0.1 and Preconditioned.sigma_min == 0.0
