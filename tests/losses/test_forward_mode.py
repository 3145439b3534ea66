"""Forward mode through what networks are made of, and errors where there is none."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from cmsolvers.losses.derivatives import total_derivative
from cmsolvers.losses.inner_modules import inner
from cmsolvers.losses.randomness import SameRandomness
from support.derivative_nets import Attention, Embedded, Net, point, reference

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


class Sine(torch.autograd.Function):
    """An operation without forward mode."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class SineLayer(nn.Module):
    def forward(self, h):
        return Sine.apply(h)


def seeded(make):
    torch.manual_seed(0)
    return make()


def derivative(net, **options):
    x, t, s, v = point(dtype=next(net.parameters()).dtype)
    return total_derivative(net, (x, t, s), (v, 1.0, None), **options)


# --- operations without forward mode -----------------------------------------------------------


@pytest.mark.parametrize("through", [False, True])
def test_an_operation_without_forward_mode_is_named_with_its_module(through):
    net = seeded(lambda: Net(SineLayer()))
    with pytest.raises(NotImplementedError) as caught:
        derivative(net, through=through)
    text = str(caught.value)
    assert "in SineLayer 'middle' of Net has no forward mode" in text
    assert 'derivative="finite_difference"' in text and "\n" not in text
    found = derivative(net.double(), method="finite_difference")
    exact = derivative(seeded(lambda: Net(nn.Identity())).double()).derivative
    plain = seeded(lambda: Net(nn.Identity())).double()
    plain.middle.forward = torch.sin
    torch.testing.assert_close(found.derivative, derivative(plain).derivative, rtol=1e-7, atol=1e-9)
    assert not torch.allclose(found.derivative, exact, rtol=0.01)


def test_fused_attention_without_the_switch_has_no_forward_mode():
    """What the block of total_derivative is there for."""
    q = torch.randn(1, 2, 3, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, q)
        with pytest.raises(NotImplementedError, match="forward AD"):
            scaled_dot_product_attention(dual, dual, dual)


def test_other_errors_of_a_network_stay_what_they_are():
    net = seeded(lambda: Net(nn.Linear(3, 3)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        derivative(net)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
    ],
)
@pytest.mark.parametrize("through", [False, True])
def test_attention_layers(make, training, through):
    layer = seeded(make).double().train(training)

    class Tokens(nn.Module):
        def forward(self, h):
            return layer(h, h, h)[0] if isinstance(layer, nn.MultiheadAttention) else layer(h)

    net = Attention(Tokens())
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    _, t, _, _ = point(2)
    found = total_derivative(net, (x, t), (x.cos(), 1.0), through=through)
    other = total_derivative(net, (x, t), (x.cos(), 1.0), method="finite_difference")
    torch.testing.assert_close(found.derivative, other.derivative, rtol=1e-6, atol=1e-8)
    assert torch.backends.mha.get_fastpath_enabled()  # as it was
    assert torch.backends.cuda.flash_sdp_enabled()


# --- activation checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad:UserWarning")
def test_activation_checkpoints(use_reentrant, through):
    plain = seeded(Net).double()
    net = seeded(lambda: Net(use_reentrant=use_reentrant)).double()
    gradients = []
    for each in (plain, net):
        found = derivative(each, through=through)
        if through:
            found.derivative.square().sum().backward()
            gradients.append(each.blocks[0].linear.weight.grad)
    torch.testing.assert_close(
        derivative(net).derivative, derivative(plain).derivative, rtol=0, atol=0
    )
    if through:
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_checkpoints_outside_of_the_block_and_in_other_threads_stay_checkpoints():
    before = torch.utils.checkpoint.CheckpointFunction
    runs = []

    def block(h):
        runs.append(threading.current_thread().name)
        return h.sin()

    def elsewhere():
        h = torch.ones(2, requires_grad=True)
        for use_reentrant in (True, False):
            checkpoint(block, h, use_reentrant=use_reentrant).sum().backward()

    class Meanwhile(nn.Module):
        def forward(self, h):
            thread = threading.Thread(target=elsewhere, name="other")
            thread.start()
            thread.join()
            return checkpoint(block, h, use_reentrant=True)

    derivative(seeded(lambda: Net(Meanwhile())))
    assert runs.count("other") == 4  # each ran again in its backward pass
    assert len(runs) == 5
    assert torch.utils.checkpoint.CheckpointFunction is before


# --- randomness, precision ---------------------------------------------------------------------


def test_dropout_of_the_students_pass_can_be_replayed():
    x, t, _, v = point(dtype=torch.float32)
    net = seeded(Embedded)
    same = SameRandomness("cpu")
    student = net(x, t)
    with same.replay():
        found = total_derivative(net, (x, t), (v, 1.0))
    torch.testing.assert_close(found.value, student, rtol=0, atol=1e-6)
    other = total_derivative(net, (x, t), (v, 1.0))
    assert not torch.allclose(found.derivative, other.derivative, rtol=0.01)  # a fresh mask


def test_all_passes_of_a_finite_difference_drop_the_same_units():
    """And they move the generator as one pass does."""
    x, t, _, v = point()
    net = seeded(Embedded).double()
    net.time.linear.float()
    net.time.register_forward_hook(lambda module, args, out: out.double())
    torch.manual_seed(3)
    exact = total_derivative(net, (x, t), (v, 1.0))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    found = total_derivative(net, (x, t), (v, 1.0), method="finite_difference")
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found.derivative, exact.derivative, rtol=1e-3, atol=1e-3)


NORMS = {
    "layer": lambda: nn.LayerNorm(16),
    "group": lambda: nn.GroupNorm(4, 16),
    "batch": lambda: nn.BatchNorm1d(16),
    "batch, eval": lambda: nn.BatchNorm1d(16).eval(),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 4)), nn.InstanceNorm1d(4, affine=True), nn.Flatten()
    ),
    "rms": lambda: nn.RMSNorm(16),
}


@pytest.mark.parametrize("norm", NORMS)
def test_normalisation(norm):
    net = seeded(lambda: Net(NORMS[norm]())).double()
    x, t, s, v = point()
    exact = reference(net, (x, t, s), (v, torch.ones_like(t), torch.zeros_like(s)))
    torch.testing.assert_close(derivative(net).derivative, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_autocast_takes_half_precision_and_is_right_to_it(norm, through):
    net = seeded(lambda: Net(NORMS[norm]()))
    exact = derivative(net)
    with torch.autocast("cpu", torch.bfloat16):
        found = derivative(net, through=through)
    assert found.value.dtype is found.derivative.dtype is torch.bfloat16
    distance = (found.derivative - exact.derivative).norm() / exact.derivative.norm()
    assert 1e-5 < distance < 0.03
    if through:
        found.derivative.float().sum().backward()
        assert all(p.grad is not None for p in net.blocks.parameters())


def test_levels_in_float32_keep_the_derivative_in_time_under_autocast():
    """Embedded in float32 it is right; rounded to bfloat16 first, what is embedded is not t."""
    x, t, _, _ = point(64, torch.float32)

    def distance(spoil):
        net = seeded(lambda: Embedded(spoil)).eval()
        right = seeded(Embedded).eval()
        exact = total_derivative(right, (x, t), (None, 1.0)).derivative
        with torch.autocast("cpu", torch.bfloat16):
            found = total_derivative(net, (x, t), (None, 1.0)).derivative
        return (found - exact).norm() / exact.norm()

    assert distance(lambda t: t) < 0.02
    assert distance(lambda t: t.bfloat16()) > 0.02


@pytest.mark.parametrize("method", ["jvp", "finite_difference"])
def test_a_pass_with_gradient_after_ours_has_its_gradient_under_autocast(method):
    """A cast of a weight that is kept without gradient would take it."""
    net = seeded(Net)
    x, t, s, _ = point(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        derivative(net, method=method)
        net(x, t, s).float().square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters())


def test_weights_in_half_precision():
    net = seeded(lambda: Net(nn.LayerNorm(16)))
    exact = derivative(net).derivative
    x, t, s, v = point(dtype=torch.float32)
    found = total_derivative(net.bfloat16(), (x.bfloat16(), t, s), (v.bfloat16(), 1.0, None))
    assert found.derivative.dtype is torch.bfloat16
    assert (found.derivative - exact).norm() / exact.norm() < 0.03


# --- compilers ---------------------------------------------------------------------------------


def test_compiled_networks_run_eagerly():
    for compiled in (torch.compile(seeded(Net)), seeded(lambda: Net(torch.compile(nn.SiLU())))):
        plain = seeded(Net) if inner(compiled) is not compiled else seeded(lambda: Net(nn.SiLU()))
        torch.testing.assert_close(
            derivative(compiled).derivative, derivative(plain).derivative, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    ("method", "norm"),
    [("jvp", "layer"), ("jvp", "group"), ("jvp", "batch, eval"), ("finite_difference", "layer")],
)
def test_a_compiled_function_may_take_derivatives(method, norm):
    torch._dynamo.reset()
    net = seeded(lambda: Net(NORMS[norm]()))
    x, t, s, v = point(dtype=torch.float32)

    def loss(x, t, s, v):
        options = {"method": method, "step": 2e-2, "bounds": (None, (s, 1.0), None)}
        found = total_derivative(net, (x, t, s), (v, 1.0, None), **options)
        target = v - (t - s).float()[:, None] * found.derivative
        return (net(x, t, s) - target).square().sum()

    values = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        value = function(x, t, s, v)
        value.backward()
        values.append((value.detach(), net.first.weight.grad.clone()))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)


# --- wrappers ----------------------------------------------------------------------------------


def test_inner_modules():
    net = seeded(Net)
    assert inner(net) is net
    assert inner(nn.DataParallel(net)) is net
    assert inner(torch.compile(nn.DataParallel(torch.compile(net)))) is net
    assert inner(torch.sin) is torch.sin
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inner(inner(net)) is net
