"""Total derivatives: exact ones, finite differences, what gradients through them are."""

import numpy as np
import pytest
import torch

from cmsolvers.losses.derivatives import total_derivative
from support.derivative_nets import Net, point, reference


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double()


def errors(found, exact):
    return (found.derivative - exact).norm(dim=1) / exact.norm(dim=1)


def test_the_exact_derivative_is_that_of_reverse_mode(net):
    x, t, s, v = point()
    found = total_derivative(net, (x, t, s), (v, 1.0, None))
    exact = reference(net, (x, t, s), (v, torch.ones_like(t), torch.zeros_like(s)))
    torch.testing.assert_close(found.derivative, exact, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(found.value, net(x, t, s), rtol=0, atol=0)
    assert found.error is None
    assert not found.value.requires_grad and not found.derivative.requires_grad
    without_x = total_derivative(net, (x, t, s), (None, 1.0, 0))
    assert errors(without_x, exact).max() > 0.1  # dx/dt counts


@pytest.mark.parametrize("method", ["jvp", "finite_difference"])
def test_levels_keep_their_dtype_and_every_level_may_move(net, method):
    x, t, s, v = point(dtype=torch.float32)
    seen = []

    def function(x, t, s):
        seen.append((x.dtype, t.dtype, s.dtype))
        return net.float()(x, t, s)

    found = total_derivative(function, (x, t, s), (v, 0.0, -2.0), method=method, step=2e-2)
    exact = reference(net, (x, t, s), (v, torch.zeros_like(t), torch.full_like(s, -2.0)))
    assert set(seen) == {(torch.float32, torch.float64, torch.float64)}
    assert errors(found, exact).max() < 1e-4


# Samples inside, at both ends, next to both ends, and next to s where t must not go.
T = torch.tensor([0.5, 0.0, 1.0, 0.003, 0.998, 0.6], dtype=torch.float64)
S = torch.tensor([0.2, 0.0, 0.3, 0.000, 0.100, 0.599], dtype=torch.float64)


@pytest.fixture
def tracked(net):
    """The network, and the levels it was called with."""
    seen = []

    def function(x, t, s):
        seen.append(t.clone())
        return torch.sin(3 * net(x, t, s))

    return function, seen


def by_difference(function, step, **options):
    x, _, _, v = point()
    inside = {"bounds": (None, (S, 1.0), None)} | options
    found = total_derivative(
        function, (x, T, S), (v, 1.0, None), method="finite_difference", step=step, **inside
    )
    exact = reference(function, (x, T, S), (v, torch.ones_like(T), torch.zeros_like(S)))
    return found, exact


def order(steps, errors):
    return np.polyfit(np.log(steps), np.log([float(e) for e in errors]), 1)[0]


def test_finite_differences_are_of_fourth_order_at_the_edges_too(tracked):
    steps = [0.1 / 2 ** (k / 2) for k in range(6)]
    found = [errors(*by_difference(tracked[0], step)) for step in steps]
    whole = [i for i in range(6) if i not in (3, 4)]  # their side changes with the step
    for i in whole[:-1]:
        assert order(steps, [e[i] for e in found]) == pytest.approx(4, abs=0.35), i
    plain = [
        errors(*by_difference(lambda x, t, s: tracked[0](x, t.abs(), s), step, bounds=None))
        for step in steps
    ]
    assert order(steps, [e[1] for e in plain]) < 3  # t = 0, across the kink at the edge


def test_finite_differences_stay_in_the_domain(tracked):
    function, seen = tracked
    found, exact = by_difference(function, 5e-3)
    levels = torch.stack(seen[:5])
    assert (levels <= 1).all() and (levels >= S).all()
    assert (levels.amax(0) > levels.amin(0)).all()
    assert errors(found, exact).max() < 1e-7
    seen.clear()
    by_difference(function, 5e-3, bounds=None)
    assert (torch.stack(seen[:5]) < S).any()  # without bounds they do not


def test_a_sample_without_room_is_zero_and_says_so(net):
    x, t, s, v = point()
    s = torch.where(torch.arange(6) == 2, t, s)
    bounds = (None, (s, t), None)
    found = total_derivative(
        net, (x, t, s), (v, 1.0, None), method="finite_difference", bounds=bounds
    )
    assert found.error[2] == torch.inf and (found.derivative[2] == 0).all()
    others = torch.arange(6) != 2
    assert found.error[others].max() < 1e-3 and (found.derivative[others] != 0).all()


def at_steps(net, steps, dtype):
    """Estimates and true errors, [steps, B]."""
    x, t, s, v = point(64, dtype)
    network, tangents = net.to(dtype), (v, 1.0, None)
    found = [
        total_derivative(network, (x, t, s), tangents, method="finite_difference", step=step)
        for step in steps
    ]
    double = (x.double(), t, s), (v.double(), torch.ones_like(t), torch.zeros_like(s))
    exact = reference(net.double(), *double)
    return torch.stack([f.error for f in found]), torch.stack([errors(f, exact) for f in found])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_estimate_is_honest(net, dtype):
    """It is above the error at every step, or so large that it says: nothing is known."""
    steps = [0.2, 0.05, 0.02, 5e-3, 2e-3, 2e-5, 2e-7]
    estimates, actual = at_steps(net, steps, dtype)
    told = (estimates >= actual) | (estimates > 0.5)
    assert (told.double().mean(1) > 0.97).all()
    assert not (estimates / 100 >= actual).double().mean(1).min() > 0.97  # and no larger
    rounding = estimates[-1].median() / actual[-1].median()
    assert rounding < 30


def test_the_error_estimate_falls_with_the_square_of_the_step(net):
    steps = [0.1 / 2**k for k in range(5)]
    estimates, _ = at_steps(net, steps, torch.float64)
    assert order(steps, estimates.median(1).values) == pytest.approx(2, abs=0.1)


def test_steps_of_the_table_would_fail_with_a_wrong_weight(net, monkeypatch):
    from cmsolvers.losses import finite_difference

    offsets, fine, coarse = finite_difference._CENTRAL
    wrong = (offsets, (-fine[0], *fine[1:3], -fine[3]), coarse)
    monkeypatch.setattr(finite_difference, "_CENTRAL", wrong)
    x, t, s, v = point()
    tangents = (v, 1.0, None)
    found = total_derivative(net, (x, t, s), tangents, method="finite_difference")
    exact = total_derivative(net, (x, t, s), tangents).derivative
    assert errors(found, exact).min() > 0.1


@pytest.mark.parametrize("method", ["jvp", "finite_difference"])
def test_gradients_go_through_the_derivative(net, method):
    """Against differences of the loss in ten directions of the weights."""
    x, t, s, v = point()

    def loss(through):
        found = total_derivative(
            net, (x, t, s), (v, 1.0, None), method=method, through=through, step=2e-2
        )
        return (found.value + found.derivative).square().mean()

    loss(True).backward()
    parameters = list(net.parameters())
    gradients = [p.grad for p in parameters]
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        values = []
        with torch.no_grad():
            for h in (1e-4, -2e-4):
                for p, a in zip(parameters, along, strict=True):
                    p += h * a
                values.append(float(loss(False)))
            for p, a in zip(parameters, along, strict=True):
                p += 1e-4 * a
        slope = sum(float((g * a).sum()) for g, a in zip(gradients, along, strict=True))
        assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["jvp", "finite_difference"])
def test_without_through_no_gradient_follows(net, method):
    x, t, s, v = point()
    x.requires_grad_()
    found = total_derivative(net, (x, t, s), (v.requires_grad_(), 1.0, None), method=method)
    assert found.value.grad_fn is None and found.derivative.grad_fn is None
    found = total_derivative(net, (x, t, s), (v, 1.0, None), method=method, through=True)
    assert found.value.grad_fn is not None and found.derivative.grad_fn is not None
    with torch.no_grad():
        found = total_derivative(net, (x, t, s), (v, 1.0, None), method=method, through=True)
    assert found.derivative.grad_fn is None


@pytest.mark.parametrize("method", ["jvp", "finite_difference"])
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(net, method, batch):
    x, t, s, v = point(batch)
    found = total_derivative(net, (x, t, s), (v, 1.0, None), method=method)
    assert found.value.shape == found.derivative.shape == x.shape
    scalar = total_derivative(lambda t: t.square(), (t,), (1.0,), method=method)
    torch.testing.assert_close(scalar.derivative, 2 * t)


def test_a_function_that_does_not_move_has_derivative_zero():
    x = torch.randn(2, 3)
    for method in ("jvp", "finite_difference"):
        found = total_derivative(torch.ones_like, (x,), (1.0,), method=method)
        assert (found.derivative == 0).all() and (found.value == 1).all()
        found = total_derivative(torch.sin, (x,), (None,), method=method)
        assert (found.derivative == 0).all()


X = torch.ones(2, 3)
L = torch.tensor([0.5, 0.6])


@pytest.mark.parametrize(
    ("kind", "match", "primals", "tangents", "options"),
    [
        (ValueError, 'derivative must be "jvp" or', (X,), (1.0,), {"method": "discrete"}),
        (TypeError, r"primals\[1\] must be floating", (X, L.long()), (1.0, 1.0), {}),
        (TypeError, r"primals\[0\] must be a torch.Tensor; got 1.0", (1.0,), (1.0,), {}),
        (ValueError, r"tangents must be one per primal, 2; got 1", (X, L), (1.0,), {}),
        (ValueError, r"tangents\[0\] must broadcast to its primal", (X,), (L,), {}),
        (ValueError, r"tangents\[0\] must be finite; got inf", (X,), (float("inf"),), {}),
        (ValueError, "step must be positive; got 0", (X,), (1.0,), {"step": 0.0}),
        (ValueError, "bounds must be one per primal, 1; got 2", (X,), (1.0,), {"bounds": (0, 1)}),
        (ValueError, r"bounds\[0\] must be .* \[2\]", (L,), (1.0,), {"bounds": ((None, X),)}),
    ],
)
def test_bad_arguments(kind, match, primals, tangents, options):
    options = {"method": "finite_difference"} | options
    with pytest.raises(kind, match=match):
        total_derivative(lambda x, *levels: x, primals, tangents, **options)


@pytest.mark.parametrize("method", ["jvp", "finite_difference"])
def test_a_function_must_return_a_floating_tensor(method):
    for wrong in (lambda x: x.long(), lambda x: (x, x), lambda x: None):
        with pytest.raises(TypeError, match="function must return a floating tensor"):
            total_derivative(wrong, (X,), (1.0,), method=method)
    with pytest.raises(TypeError, match="function must be callable"):
        total_derivative(3, (X,), (1.0,), method=method)
