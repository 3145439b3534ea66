"""Direct calls f(x, sigma): bits of levels as numbers and as tensors, derivatives, transforms."""

import copy
import math
import pickle
import weakref

import pytest
import torch
from torch import func

from cmsolvers import denoisers
from cmsolvers.denoisers import EDM, ConsistencyFunction, Preconditioned
from cmsolvers.processes import DDPM
from support.columns import column

B = 12
END = 0.003
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MAKERS = {
    "EDM": lambda net, **how: EDM(net, 0.4, **how),
    "consistency": lambda net, **how: ConsistencyFunction(net, 0.4, END, **how),
    "consistency, sigma_min exact in float32": lambda net, **how: ConsistencyFunction(
        net, 0.4, 2.0**-9, **how
    ),
    "trigflow": lambda net, **how: denoisers.from_trigflow(net, 0.4, **how),
    "eps": lambda net, **how: denoisers.from_eps(net, process=DDPM(), **how),
    "v": lambda net, **how: denoisers.from_v(net, process=DDPM(), **how),
}
FUSED = ("EDM", "consistency", "consistency, sigma_min exact in float32")


def noisy(shape=(B, 2, 3), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def levels(dtype=torch.float64, count=B):
    """Among others sigma_min, what float32 holds for it, and a level just below."""
    generator = torch.Generator().manual_seed(1)
    sigma = torch.randn(count, generator=generator, dtype=torch.float64).mul(2).exp()
    sigma[:4] = torch.tensor([END, torch.tensor(END).item(), (1 - 2**-9) * END, 80.0])
    return sigma.to(dtype)


def network(x, c):
    """Large where c_out is tiny, so that a wrong boundary shows."""
    return 1e3 * x.sin() + x


def layouts(dtype):
    x = noisy((B, 3, 4, 2), dtype)
    yield noisy(dtype=dtype)
    yield x.to(memory_format=torch.channels_last)
    yield x[:, :, ::2]
    yield noisy((B,), dtype)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_levels_in_a_tensor_have_the_bits_of_numbers(name, dtype):
    inputs = []

    def net(x, c):
        inputs.append(x)
        return network(x, c)

    f = MAKERS[name](net)
    # the others make their coefficients in torch, which rounds roots and logarithms differently
    same = torch.equal if name in FUSED else close
    for sigma in map(levels, DTYPES):
        for x in layouts(dtype):
            inputs.clear()
            together = f(x, sigma)
            alone = torch.cat([f(x[b : b + 1], s) for b, s in enumerate(sigma.tolist())])
            assert together.dtype is dtype and together.shape == x.shape
            assert same(together, alone)
            assert same(inputs[0], torch.cat(inputs[1:]))
            assert same(f(x, sigma[5]), f(x, sigma[5].item()))
            assert same(f(x, sigma[5].expand(B)), f(x, sigma[5].item()))


def close(a, b):
    tolerance = 8 * torch.finfo(a.dtype).eps
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_the_bits_are_those_of_a_boundary_at_one_level_alone():
    """A boundary rounded for every level, not just at the end, gives other bits: seen here."""
    x, sigma = noisy((4000, 1), torch.float64), levels(torch.float32, 4000)
    f = ConsistencyFunction(network, 0.4, END)
    rounded = ConsistencyFunction(network, 0.4, torch.tensor(END).item())
    assert torch.equal(f(x, sigma)[1], x[1]) and torch.equal(rounded(x, sigma)[1], x[1])
    assert (f(x, sigma) != rounded(x, sigma)).any()


@pytest.mark.parametrize("make", [EDM, ConsistencyFunction])
@pytest.mark.parametrize("c_noise", ["edm", "published", "sigma", torch.sqrt])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_c_noise_has_the_bits_of_its_formula(make, c_noise, dtype):
    formula = {"edm": lambda s: 0.25 * s.log(), "published": lambda s: 250.0 * s.log()}
    seen = []

    def net(x, c):
        seen.append(c)
        return x

    wide = torch.float64 if dtype is torch.float64 else torch.float32
    f = make(net, c_noise=c_noise)
    for sigma in map(levels, DTYPES):
        f(noisy(dtype=dtype), sigma)
        of = formula.get(c_noise, (lambda s: s) if c_noise == "sigma" else c_noise)
        expected = of(sigma.double()).to(wide)
        assert seen[-1].dtype is wide and torch.equal(seen[-1], expected)
        f(noisy(dtype=dtype), sigma[5])
        assert seen[-1].shape == (B,) and torch.equal(seen[-1], expected[5].expand(B))


@pytest.mark.parametrize("sigma", list(map(levels, DTYPES)), ids=lambda s: str(s.dtype))
@pytest.mark.parametrize("c_noise", ["edm", "sigma"])
def test_levels_and_c_noise_are_not_written_to(sigma, c_noise):
    before, seen = sigma.clone(), []

    def net(x, c):
        seen.append((c, c.clone()))
        return x

    ConsistencyFunction(net, 0.4, END, c_noise)(noisy(dtype=torch.float64), sigma)
    ((c, copied),) = seen
    assert torch.equal(sigma, before) and torch.equal(c, copied)


@pytest.mark.parametrize("name", FUSED)
def test_dtype_of_the_network(name):
    seen = []

    def net(x, c):
        seen.append(x)
        return x

    x, sigma = noisy(), levels(torch.float32)
    narrow, wide = MAKERS[name](net, dtype=torch.bfloat16), MAKERS[name](net)
    narrow(x, sigma)
    wide(x, sigma)
    assert seen[0].dtype is torch.bfloat16 and torch.equal(seen[0], seen[1].bfloat16())


# --- derivatives and transforms ---------------------------------------------------------------


def smooth(x, c):
    return (x + column(c, x)).sin()


@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_in_x(name):
    """By the steps of levels, in both modes; the negative control is the level of another row."""
    f, x, sigma = MAKERS[name](smooth), noisy((3, 2), torch.float64), levels()[4:7]
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: f(x, sigma), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: f(x, sigma), x)
    (slope,) = torch.autograd.grad(f(x, sigma).sum(), x)
    (other,) = torch.autograd.grad(f(x, sigma.roll(1)).sum(), x)
    assert not torch.allclose(slope, other)


@pytest.mark.parametrize("name", MAKERS)
def test_transforms(name):
    f, x, sigma = MAKERS[name](smooth), noisy((3, 2), torch.float64), levels()[4:7]
    jacobian = torch.autograd.functional.jacobian(lambda x: f(x, sigma), x)
    _, tangent = func.jvp(lambda x: f(x, sigma), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, jacobian.sum((2, 3)))
    _, pull = func.vjp(lambda x: f(x, sigma), x)
    torch.testing.assert_close(pull(torch.ones_like(x))[0], jacobian.sum((0, 1)))
    gradient = func.grad(lambda x: f(x, sigma).sum())
    torch.testing.assert_close(gradient(x), jacobian.sum((0, 1)))
    _, second = func.jvp(gradient, (x,), (torch.ones_like(x),))
    h = 1e-5
    torch.testing.assert_close(
        second, (gradient(x + h) - gradient(x - h)) / (2 * h), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", FUSED)
def test_derivatives_in_sigma(name):
    f, x, sigma = MAKERS[name](smooth), noisy((3, 2), torch.float64), levels()[4:7]
    h = 1e-6
    slope = (f(x, sigma + h) - f(x, sigma - h)) / (2 * h)
    _, tangent = func.jvp(lambda s: f(x, s), (sigma,), (torch.ones_like(sigma),))
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-6)
    gradient = func.grad(lambda s: f(x, s).sum())(sigma)
    torch.testing.assert_close(gradient, slope.sum(1), rtol=1e-6, atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(sigma, torch.ones_like(sigma))
        tangent = torch.autograd.forward_ad.unpack_dual(f(x, dual)).tangent
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-6)


def test_backward_through_a_network_that_learns_its_c_noise():
    """Levels that autograd keeps for the backward pass are not written over."""
    rate = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    sigma = levels(torch.float32)
    f = ConsistencyFunction(smooth, 0.4, END, lambda s: rate * s)
    f(noisy(), sigma).sum().backward()
    assert math.isfinite(rate.grad.item()) and rate.grad.item() != 0


@pytest.mark.parametrize("name", FUSED)
def test_backward_into_x_and_the_network(name):
    linear = torch.nn.Linear(3, 3)
    f = MAKERS[name](lambda x, c: linear(x) + column(c, x))
    x, sigma = noisy().requires_grad_(), levels(torch.float32)
    f(x, sigma).square().sum().backward()
    got = [x.grad, linear.weight.grad]
    x.grad = linear.weight.grad = None
    sum(f(x[b : b + 1], s).square().sum() for b, s in enumerate(sigma.tolist())).backward()
    torch.testing.assert_close(got, [x.grad, linear.weight.grad])


@pytest.mark.parametrize("name", (*FUSED, "trigflow"))
@pytest.mark.parametrize("level", ["vector", "scalar", "number"])
def test_fullgraph(name, level):
    f, x, sigma = MAKERS[name](smooth), noisy(), levels(torch.float32)
    given = {"vector": sigma, "scalar": sigma[5], "number": 0.7}[level]
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, given), f(x, given))


def test_under_inference_mode_and_another_default_device():
    f, x, sigma = ConsistencyFunction(network, 0.4, END), noisy(), levels(torch.float32)
    expected = f(x, sigma), f(x, 0.7)
    with torch.inference_mode(), torch.device("meta"):
        got = f(x, sigma), f(x, 0.7)
    assert all(map(torch.equal, got, expected))
    x.requires_grad_()
    torch.autograd.grad(f(x, 0.7).sum(), x)  # nothing made in inference mode is left over


# --- what else a call does --------------------------------------------------------------------


def test_coefficients_of_a_subclass_and_of_an_object_are_those_of_the_call():
    class Shifted(EDM):
        def coefficients(self, sigma):
            return super().coefficients(2.0 * sigma)

    x, sigma = noisy(), levels(torch.float32)
    expected = EDM(network)(x, 2.0 * sigma)
    torch.testing.assert_close(Shifted(network)(x, sigma), expected)
    f = EDM(network)
    f.coefficients = lambda s: Preconditioned.coefficients(f, 2.0 * s)
    torch.testing.assert_close(f(x, sigma), expected)
    assert not torch.allclose(EDM(network)(x, sigma), expected)


def test_a_noise_dtype_of_a_subclass():
    seen = []

    class Half(EDM):
        def noise_dtype(self, x):
            return torch.float16

    def net(x, c):
        seen.append(c)
        return x

    sigma = levels(torch.float32)
    Half(net)(noisy(), sigma)
    assert torch.equal(seen[0], (0.25 * sigma.double().log()).half())


def test_copies_and_pickles_answer_the_same():
    x, sigma = noisy(), levels(torch.float32)
    for make in (EDM, ConsistencyFunction):
        f = make(network)
        for other in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
            assert torch.equal(other(x, sigma), f(x, sigma))
            assert other.signature == f.signature
        assert f.signature != make(network, 0.3).signature
    assert ConsistencyFunction(network).signature != EDM(network).signature
    assert (
        ConsistencyFunction(network, sigma_min=0.1).signature
        != ConsistencyFunction(network).signature
    )


@pytest.mark.parametrize("make", [EDM, ConsistencyFunction, MAKERS["eps"]])
def test_calls_keep_no_tensors(make):
    """Nothing that a call makes outlives it, so that calls at many levels need no memory."""
    made = []

    def net(x, c):
        made.extend((weakref.ref(x), weakref.ref(c)))
        return x

    f, x, sigma = make(net), noisy(), levels(torch.float32)
    f(x, 0.7)
    f(x, sigma)
    assert len(made) == 4 and all(tensor() is None for tensor in made)


X = noisy()
BAD = {
    "x": ((None, 0.7), TypeError, "x must be a torch.Tensor"),
    "integers": ((X.long(), 0.7), TypeError, "x must be float64"),
    "no batch": ((X[0, 0, 0], 0.7), ValueError, "x must have a batch"),
    "meta": ((X.to("meta"), 0.7), ValueError, "x must be on a device that holds data"),
    "text": ((X, "0.7"), TypeError, "sigma must be a number"),
    "bool": ((X, True), TypeError, "sigma must be a number"),
    "zero": ((X, 0.0), ValueError, "sigma must be positive; got 0"),
    "negative": ((X, -1), ValueError, "sigma must be positive; got -1"),
    "nan": ((X, math.nan), ValueError, "sigma must be a number; got nan"),
    "infinite": ((X, math.inf), ValueError, "sigma must be finite; got inf"),
    "whole": ((X, torch.ones(B, dtype=torch.int64)), TypeError, "sigma must be floating"),
    "shape": ((X, torch.ones(B + 1)), ValueError, r"sigma must have shape \[\] or \[B\] = \[12\]"),
    "one of many": ((X, torch.ones(1)), ValueError, r"sigma must have shape \[\] or \[B\]"),
    "columns": ((X, torch.ones(B, 1)), ValueError, r"sigma must have shape \[\] or \[B\]"),
    "device": ((X, torch.ones(B, device="meta")), ValueError, "sigma must be on the device of x"),
}


@pytest.mark.parametrize("make", [EDM, ConsistencyFunction, MAKERS["eps"]])
@pytest.mark.parametrize("given, error, match", BAD.values(), ids=BAD)
def test_errors(make, given, error, match):
    with pytest.raises(error, match=match):
        make(network)(*given)


@pytest.mark.parametrize("sigma", [0.7, levels()], ids=["number", "tensor"])
@pytest.mark.parametrize(
    "net, error, match",
    [
        (lambda x, c: None, TypeError, "net must return a torch.Tensor"),
        (lambda x, c: x[:1], ValueError, "net must return the shape of x"),
        (lambda x, c: x.double(), TypeError, "net must return the dtype of x"),
        (lambda x, c: x.to("meta"), ValueError, "net must return a tensor on the device of x"),
    ],
    ids=["none", "shape", "dtype", "device"],
)
def test_errors_of_the_network(sigma, net, error, match):
    for make in (EDM, ConsistencyFunction):
        with pytest.raises(error, match=match):
            make(net)(X, sigma)


def test_integers_and_numbers_of_other_types():
    import numpy as np

    for make in (EDM, ConsistencyFunction):
        f = make(network)
        assert torch.equal(f(X, 2), f(X, 2.0)) and torch.equal(f(X, np.float64(2.0)), f(X, 2.0))
    empty = X[:0]
    assert EDM(network)(empty, torch.ones(0)).shape == empty.shape
    assert EDM(network)(empty, 0.7).shape == empty.shape
