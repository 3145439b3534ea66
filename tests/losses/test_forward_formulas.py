"""Calls that forward mode makes in another way give what torch's own give."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

from cmsolvers.losses.derivatives import total_derivative

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

GENERATOR = torch.Generator().manual_seed(1)


def draw(*shape):
    return torch.rand(shape, generator=GENERATOR, dtype=torch.float64) + 0.5


X, V, W = draw(3, 4, 5), draw(3, 4, 5), draw(4, 1)
MATRIX, BIAS, CHANNELS, ROW = draw(7, 5), draw(7), draw(4), draw(5)

FORMULAS = {
    "sum": lambda x: W + x + W,
    "sum of numbers": lambda x: 1.5 + x + 2,
    "alpha": lambda x: torch.add(x, W, alpha=2) + torch.sub(W, x, alpha=3),
    "difference": lambda x: (W - x) * (x - 1) * (1 - x),
    "product": lambda x: W * x * 2 * (3 * x),
    "quotient": lambda x: W / x + x / W + 1 / x + x / 3,
    "in place": lambda x: x.clone().add_(W).mul_(2).sub_(0.5).div_(W).mul_(W),
    "integers": lambda x: x * torch.arange(5) + x * (x > 1),
    "linear": lambda x: functional.linear(x, MATRIX, BIAS),
    "linear, named": lambda x: functional.linear(x, weight=MATRIX, bias=BIAS),
    "linear, plain": lambda x: functional.linear(x, MATRIX),
    "linear, moving bias": lambda x: functional.linear(x, MATRIX, MATRIX @ x[0, 0]),
    "layer norm": lambda x: functional.layer_norm(x, [5], ROW, -ROW, 1e-3),
    "layer norm, two": lambda x: functional.layer_norm(x, [4, 5]),
    "group norm": lambda x: functional.group_norm(x, 2, CHANNELS, -CHANNELS),
    "group norm, plain": lambda x: functional.group_norm(x, 4, eps=1e-2),
    "batch norm": lambda x: functional.batch_norm(x, CHANNELS, CHANNELS, CHANNELS, CHANNELS),
    "batch norm, plain": lambda x: functional.batch_norm(x, CHANNELS, CHANNELS),
    "batch norm, training": lambda x: functional.batch_norm(x, None, None, training=True),
    "batch norm, moving": lambda x: functional.batch_norm(
        x, CHANNELS.clone(), CHANNELS.clone(), CHANNELS, training=True
    ),
    "convolution": lambda x: functional.conv1d(x, MATRIX[:, :4, None], BIAS, padding=1),
    "transposed": lambda x: functional.conv_transpose1d(x, MATRIX[:4, :, None], stride=2),
    "instance norm": lambda x: functional.instance_norm(x, weight=CHANNELS, bias=CHANNELS),
}


def torchs_own(function, x, v):
    with torch.no_grad(), forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, v)))


@pytest.mark.parametrize("name", FORMULAS)
def test_they_are_torchs_own(name):
    function = FORMULAS[name]
    value, tangent = torchs_own(function, X, V)
    found = total_derivative(function, (X,), (V,))
    torch.testing.assert_close(found.value, value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.derivative, tangent, rtol=1e-12, atol=1e-12)


def slopes(function, by):
    """Of sum sin(dF/dt) in a direction: in reverse mode, and by differences, far from rounding."""

    def total(x):
        return by(function, x).sin().sum()

    x = X.clone().requires_grad_()
    h, along = 1e-5, torch.randn(X.shape, generator=GENERATOR, dtype=X.dtype)
    value = total(x)
    (gradient,) = torch.autograd.grad(value, x) if value.requires_grad else (torch.zeros_like(X),)
    with torch.no_grad():
        difference = (total(X + h * along) - total(X - h * along)) / (2 * h)
    return float((gradient * along).sum()), float(difference)


def ours(function, x):
    return total_derivative(function, (x,), (V,), through=True).derivative


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_through_them(name):
    gradient, difference = slopes(FORMULAS[name], ours)
    assert gradient == pytest.approx(difference, rel=1e-5, abs=1e-7)


def test_gradients_of_functions_that_have_none_with_dual_tensors():
    for function in (
        lambda x: x.softmax(-1),
        lambda x: x.logsumexp(-1),
        lambda x: functional.scaled_dot_product_attention(x, x, x),
    ):
        gradient, difference = slopes(function, ours)
        assert gradient == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_and_constants_leave_the_dtype(dtype):
    def function(x):
        return (x * 0.1 + 1) / 3 - W.to(dtype)

    found = total_derivative(function, (X.to(dtype),), (1.0,))
    assert found.value.dtype is found.derivative.dtype is dtype
    assert torch.equal(found.value, function(X.to(dtype)))


def test_constants_that_need_gradients_get_them():
    weight = CHANNELS[:, None].clone().requires_grad_()
    found = total_derivative(lambda x: (x * weight + weight).sin(), (X,), (V,), through=True)
    (gradient,) = torch.autograd.grad(found.derivative.sum(), weight)
    h = 1e-5

    def shifted(by):
        moved = weight.detach() + by * torch.eye(4, dtype=torch.float64)[2][:, None]
        return total_derivative(lambda x: (x * moved + moved).sin(), (X,), (V,)).derivative.sum()

    assert float(gradient[2]) == pytest.approx(float(shifted(h) - shifted(-h)) / (2 * h), rel=1e-7)


def test_running_statistics_move_as_torchs():
    layers = [nn.BatchNorm1d(4).double() for _ in range(2)]
    total_derivative(layers[0], (X,), (V,))
    layers[1](X)
    for mine, theirs in zip(layers[0].buffers(), layers[1].buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=1e-14)


def test_a_linear_layer_is_two_products():
    """Of the value and of the tangent; torch's own has a third, by zeros."""
    layer, made = nn.Linear(5, 7).double(), []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made.append(func)
            return func(*args, **(kwargs or {}))

    def products(run):
        made.clear()
        with Spy():
            run()
        return sum("mm" in str(func) for func in made)

    assert products(lambda: total_derivative(layer, (X,), (V,))) == 2
    assert products(lambda: torchs_own(layer, X, V)) > 2
