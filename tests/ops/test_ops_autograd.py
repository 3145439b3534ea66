"""Derivatives to second order, torch.func transforms, opcheck, and torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, func
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from cmsolvers import noise, ops
from cmsolvers.ops import rules
from cmsolvers.ops.reference import NONE, PAIR, SCALED, X0
from support.exact import assert_same_bits
from support.modes import MODES, Mode

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
EXACT = {
    name: m for name, m in MODES.items() if "float16" not in name and name != "second bfloat16"
}
Arguments = tuple[Tensor, ...]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return values.to(dtype)


def tensors(mode: Mode, shape: tuple[int, ...] = (4, 3), dtype: torch.dtype = F64) -> Arguments:
    """x and the inputs; away from the bounds of a clamp, where there is no derivative."""
    return tuple(randn(*shape, seed=5 + k, dtype=dtype) for k in range(mode.inputs + 1))


def function(mode: Mode, batch: int = 4) -> Callable[..., Any]:
    weights, options = mode.weights(batch), mode.options(batch)
    return lambda x, *inputs: ops.weighted_step(x, inputs, weights, **options)


def torch_function(mode: Mode, batch: int = 4) -> Callable[..., tuple[Tensor, ...]]:
    """The same formula in plain torch, which torch differentiates."""
    weights, options = mode.weights(batch), mode.options(batch)
    if isinstance(weights, Tensor):
        weights = weights.unbind(1)

    def spread(w: Any, x: Tensor) -> Any:
        return (
            w.double().reshape(-1, *[1] * (x.dim() - 1)) if isinstance(w, Tensor) and w.dim() else w
        )

    def call(x: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        z = 0.0
        if "seed" in options:
            place = {"draw": options["draw"], "offset": options["offset"], "stream": 1}
            z = noise.normal(x.shape, options["seed"], **place, dtype=F64)
        basis = list(inputs)
        if "x0" in options:
            basis[0] = spread(options["x0"][0], x) * x + spread(options["x0"][1], x) * basis[0]
        if "clamp" in options:
            basis[0] = basis[0].clamp(*options["clamp"])
        y = spread(weights[0], x) * x + spread(options.get("w_z", 0.0), x) * z
        for w, m in zip(weights[1:], basis, strict=True):
            y = y + spread(w, x) * m
        second = options.get("second")
        if second is None:
            return (y,)
        if isinstance(second, str):
            return y, basis[0]
        if isinstance(second, tuple):
            return y, spread(second[1], x) * x + spread(second[2], x) * z
        return y, spread(second, x) * y

    return call


@pytest.mark.parametrize("name", EXACT)
class TestModes:
    def test_gradients(self, name):
        given = [t.requires_grad_() for t in tensors(EXACT[name])]
        assert gradcheck(function(EXACT[name]), given, check_forward_ad=True)

    def test_second_order(self, name):
        """Through a nonlinear function, so that there is something to find."""
        step = function(EXACT[name])

        def bent(*given: Tensor) -> Tensor:
            result = step(*(torch.sin(t) for t in given))
            parts = (result,) if isinstance(result, Tensor) else result
            return sum((p**2).sum() for p in parts)  # type: ignore[return-value]

        given = [t.requires_grad_() for t in tensors(EXACT[name], (4, 2))]
        assert gradgradcheck(bent, given, check_fwd_over_rev=True, check_rev_over_rev=True)

    def test_jvp_and_vjp_of_plain_torch(self, name):
        """Against torch's own derivatives of the formula, in all torch.func transforms."""
        mode = EXACT[name]
        given, along = (
            tensors(mode),
            tuple(randn(4, 3, seed=50 + k) for k in range(mode.inputs + 1)),
        )
        step, plain = function(mode), torch_function(mode)
        ours = lambda *t: (step(*t),) if isinstance(step(*t), Tensor) else step(*t)  # noqa: E731
        for mine, theirs in zip(
            func.jvp(ours, given, along), func.jvp(plain, given, along), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        (_, pull), (_, pull_plain) = func.vjp(ours, *given), func.vjp(plain, *given)
        seeds = tuple(randn(4, 3, seed=70 + k) for k in range(len(plain(*given))))
        torch.testing.assert_close(pull(seeds), pull_plain(seeds), rtol=1e-12, atol=1e-12)
        indices = tuple(range(len(given)))
        small = tuple(t[:, :1] for t in given)
        for transform in (func.jacrev, func.jacfwd):
            if transform is func.jacfwd and "seed" in mode.options(4):
                continue  # vmap outside: refused with noise, see below
            mine = transform(lambda *t: ours(*t)[0], indices)(*small)
            theirs = transform(lambda *t: plain(*t)[0], indices)(*small)
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


class TestReverse:
    @pytest.mark.parametrize(("state", "model"), [(F32, F16), (F32, BF16), (F64, F32), (F16, F16)])
    def test_mixed_dtypes(self, state, model):
        x = randn(4, 6, dtype=state).requires_grad_()
        f = randn(4, 6, seed=1, dtype=model).requires_grad_()
        y, scaled = ops.weighted_step(x, (f,), (0.5, 0.25), second=0.5, second_dtype=model)
        (y.double().sum() + scaled.double().sum()).backward()
        assert x.grad.dtype == state and f.grad.dtype == model
        torch.testing.assert_close(
            x.grad.double(), torch.full((4, 6), 0.75, dtype=F64), rtol=1e-3, atol=0
        )
        torch.testing.assert_close(
            f.grad.double(), torch.full((4, 6), 0.375, dtype=F64), rtol=1e-3, atol=0
        )

    def test_gradient_of_the_second_alone_keeps_precision(self):
        """The gradient of a bfloat16 output is carried on in the state's float32."""
        x = randn(4, 6, dtype=F32).requires_grad_()
        scaled = ops.weighted_step(x, (), (1.0,), second=0.3, second_dtype=BF16)[1]
        scaled.backward(torch.ones_like(scaled))
        torch.testing.assert_close(x.grad, torch.full((4, 6), 0.3), rtol=1e-7, atol=0)

    def test_only_what_is_needed(self):
        x, f = randn(3, 4), randn(3, 4, seed=1).requires_grad_()
        ops.weighted_step(x, (f,), (1.0, 2.0)).sum().backward()
        assert x.grad is None and torch.equal(f.grad, torch.full((3, 4), 2.0, dtype=F64))
        f.grad = None
        ops.weighted_step(x, (f,), (1.0, 0.0)).sum().backward()
        assert torch.equal(f.grad, torch.zeros(3, 4, dtype=F64))
        assert not ops.weighted_step(x, (x,), (1.0, 2.0)).requires_grad
        with torch.no_grad():
            assert not ops.weighted_step(x, (f,), (1.0, 2.0)).requires_grad

    def test_layout_of_gradients(self):
        x = randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
        f = randn(2, 3, 4, 5, seed=1).requires_grad_()
        g = randn(2, 3, 4, 5, seed=2)
        ops.weighted_step(x, (f,), (0.5, 0.25)).backward(g)
        assert torch.equal(x.grad, 0.5 * g) and torch.equal(f.grad, 0.25 * g)

    def test_noise_is_a_constant(self):
        x = randn(3, 4).requires_grad_()
        y = ops.add_noise(x, 2.0, alpha=0.5, seed=1)
        y.sum().backward()
        assert torch.equal(x.grad, torch.full((3, 4), 0.5, dtype=F64))

    def test_clamp_masks(self):
        f = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]], dtype=F64, requires_grad=True)
        x = torch.zeros_like(f).requires_grad_()
        ops.weighted_step(x, (f,), (0.5, 3.0), clamp=(-1, 1)).sum().backward()
        assert f.grad.tolist() == [[0.0, 3.0, 3.0, 3.0, 0.0]]  # bounds count as inside, as in torch
        assert x.grad.tolist() == [[0.5] * 5]

    @pytest.mark.parametrize("name", EXACT)
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_of_every_mode(self, name, reentrant):
        """Saved tensors are read once, as checkpoints demand; the gradients are the same."""
        mode = EXACT[name]
        call = function(mode)

        def total(*arguments):
            made = call(*arguments)
            return sum(t.square().sum() for t in (made if isinstance(made, tuple) else (made,)))

        given = [t.requires_grad_() for t in tensors(mode)]
        kept = checkpoint(total, *given, use_reentrant=reentrant)
        kept.backward()
        plain = torch.autograd.grad(total(*given), given)
        assert all(torch.equal(t.grad, g) for t, g in zip(given, plain, strict=True))

    def test_checkpointing_through_steps(self):
        x = randn(2, 3).requires_grad_()
        step = lambda t: ops.euler_maruyama_step(t, -t, 1.0, 0.1, seed=3)  # noqa: E731
        torch.utils.checkpoint.checkpoint(step, x, use_reentrant=False).sum().backward()
        torch.testing.assert_close(x.grad, torch.full_like(x, 0.9))


class TestForward:
    def test_dual_numbers(self):
        x, f, t = randn(3, 4), randn(3, 4, seed=1), randn(3, 4, seed=2)
        with forward_ad.dual_level():
            y = ops.heun_step(forward_ad.make_dual(x, t), f, 2.0, 1.0, f)
            primal, tangent = forward_ad.unpack_dual(y)
            torch.testing.assert_close(tangent, 0.5 * t)
            plain = ops.heun_step(x, f, 2.0, 1.0, f)
            assert forward_ad.unpack_dual(plain).tangent is None
        assert torch.equal(primal, plain)

    @pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
    def test_tangent_of_a_low_precision_input(self, clamp):
        x, f, t = (
            randn(3, 4, dtype=F32),
            randn(3, 4, seed=1, dtype=F16),
            torch.ones(3, 4, dtype=F16),
        )
        with forward_ad.dual_level():
            y = ops.weighted_step(x, (0.1 * forward_ad.make_dual(f, t),), (1.0, 0.3), clamp=clamp)
            tangent = forward_ad.unpack_dual(y).tangent
        assert tangent.dtype == F32
        torch.testing.assert_close(tangent, torch.full((3, 4), 0.03), rtol=1e-3, atol=0)

    def test_out_is_refused(self):
        x = randn(3, 4)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, x)
            with pytest.raises(ValueError, match="out does not support automatic differentiation"):
                ops.pf_ode_step(dual, x, 2.0, 1.0, out=torch.empty_like(x))


class TestVmap:
    @pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (0, 2), (None, 1), (0, None)])
    @pytest.mark.parametrize(
        "options", [{}, {"clamp": (-0.5, 0.5), "second": "x0"}, {"second": 0.5}]
    )
    def test_host_weights(self, in_dims, options):
        sizes = [(4, 3) if d is None else (*(4, 3)[:d], 5, *(4, 3)[d:]) for d in in_dims]
        x, f = (randn(*shape, seed=k) for k, shape in enumerate(sizes))
        step = lambda x, f: ops.weighted_step(x, (f,), (0.5, 0.25), **options)  # noqa: E731
        got = func.vmap(step, in_dims)(x, f)
        at = lambda t, d, i: t if d is None else t.select(d, i)  # noqa: E731
        for i in range(5):
            want = step(at(x, in_dims[0], i), at(f, in_dims[1], i))
            mine = got[i] if isinstance(got, Tensor) else [g[i] for g in got]
            assert_same_bits(mine, want)

    def test_rows(self):
        x, f, w = randn(5, 4, 3), randn(5, 4, 3, seed=1), randn(4, seed=2)
        step = lambda x, f, w: ops.weighted_step(x, (f,), (0.5, w))  # noqa: E731
        for in_dims, weights in (
            ((0, 0, None), w),
            ((0, 0, 0), randn(5, 4)),
            ((0, 0, 0), randn(5)),
        ):
            got = func.vmap(step, in_dims)(x, f, weights)
            for i in range(5):
                one = weights if in_dims[2] is None else weights[i]
                assert_same_bits(got[i], step(x[i], f[i], one))
        scalars = func.vmap(step)(x[:, 0, 0], f[:, 0, 0], randn(5))
        torch.testing.assert_close(scalars, 0.5 * x[:, 0, 0] + randn(5) * f[:, 0, 0])

    def test_nested_and_with_grad(self):
        x, f = randn(5, 4, 3), randn(5, 4, 3, seed=1)
        step = lambda x, f: ops.pf_ode_step(x, f, 2.0, 0.5)  # noqa: E731
        assert_same_bits(func.vmap(func.vmap(step))(x, f), step(x, f))
        loss = lambda x, f: (step(x, f) ** 2).sum()  # noqa: E731
        torch.testing.assert_close(func.vmap(func.grad(loss))(x, f), func.grad(loss)(x, f))
        torch.testing.assert_close(
            func.hessian(lambda x: loss(x, f[0, 0]))(x[0, 0]), 0.125 * torch.eye(3, dtype=F64)
        )

    @pytest.mark.parametrize("outer", [func.jacrev, func.jacfwd])
    @pytest.mark.parametrize("inner", [func.jacrev, func.jacfwd])
    def test_all_orders_of_second_derivatives(self, outer, inner):
        f = randn(3, seed=1)
        step = lambda x: ops.weighted_step(x**3, (f * x**2,), (0.5, 0.25)).sum()  # noqa: E731
        x = randn(3)
        want = torch.diag(3 * x + 0.5 * f)
        torch.testing.assert_close(outer(inner(step))(x), want)

    def test_noise_inside_transforms(self):
        draw = lambda x: x * noise.normal((4, 3), 3)  # noqa: E731
        tangent = func.jvp(draw, (randn(4, 3),), (torch.ones(4, 3, dtype=F64),))[1]
        assert_same_bits(tangent, noise.normal((4, 3), 3).double())
        step = lambda x: ops.euler_maruyama_step(x, x, 1.0, 0.1, seed=3).sum()  # noqa: E731
        torch.testing.assert_close(func.grad(step)(randn(4, 3)), torch.full((4, 3), 1.1, dtype=F64))

    def test_what_is_refused(self):
        x = randn(5, 4, 3)
        for call in (
            lambda x: ops.euler_maruyama_step(x, x, 1.0, 0.1, seed=1),
            lambda x: ops.add_noise(x, 1.0, sigma_next=2.0, seed=1),
        ):
            with pytest.raises(RuntimeError, match="vmap over a step with noise is not supported"):
                func.vmap(call)(x)
        with pytest.raises(RuntimeError, match="vmap over a step with out= is not supported"):
            func.vmap(lambda x: ops.pf_ode_step(x, x, 2.0, 1.0, out=x))(x)


def operator_arguments() -> dict[str, tuple[Any, ...]]:
    """Arguments of the two functional operators, by what is special about them."""
    x, f, g = (randn(3, 4, seed=k).requires_grad_() for k in range(3))
    w2, w1, w0 = (
        [0.5, 0.25, -0.5, 0.3, 0.2, 0.8, 0.7, 0.4],
        [0.5, 0.25, 0.3, 0.2, 0.8, 0.7, 0.4],
        [0.5, 0.3, 0, 1, 0.5, 0.2],
    )
    columns = [randn(3, seed=9), randn(1, seed=9), randn(3, 2, seed=9)[:, 1]]
    columns += [randn(3, seed=8, dtype=F32), torch.tensor(0.5)]
    some = (columns, [0, 2, 4, 6, 7])
    one = ([randn(1, seed=k) for k in range(8)], list(range(8)), rules.WEIGHTS)
    levels = [randn(3, seed=9).abs() + 1, randn(3, seed=8, dtype=BF16).abs()]
    first, both = (levels[:1], [0]), (levels, [0, 1])
    key = torch.tensor([[1, 2], [3, 4], [5, 6]])
    place = [7, 0, 1, 2]
    half = randn(3, 4, seed=4, dtype=F32).requires_grad_()
    plain = ([], [], rules.WEIGHTS)
    return {
        "two inputs": (x, [f, g], w2, *plain, [], None, []),
        "noise": (x, [f], w1, *plain, place, None, []),
        "table of keys": (x, [f], w1, *plain, place, key, []),
        "rows": (x, [f, g], w2, *some, rules.WEIGHTS, place, None, []),
        "one row": (x, [f, g], w2, *one, [], None, []),
        "clamp": (x, [f, g], w2, *plain, [], None, [-1.0, 1.0]),
        "rows, clamp": (x, [f, g], w2, *some, rules.WEIGHTS, [], None, [-1.0, 1.0]),
        "no inputs": (x, [], w0, *plain, place, None, []),
        "mixed": (x, [half], w1, *plain, [], None, []),
        "pf_ode": (x, [f], [0.0, 0.5], *first, rules.PF_ODE, [], None, []),
        "pf_ode of numbers": (x, [f], [2.0, 0.5], [], [], rules.PF_ODE, [], None, []),
        "heun": (x, [f, g], [0.0, 0.0], *both, rules.HEUN, [], None, []),
        "consistency": (x, [f], [0, 0.5, 0.002], *first, rules.CONSISTENCY, [], None, []),
        "edm_input": (x, [], [0.0, 0.5], *first, rules.EDM_INPUT, [], None, []),
        "edm_output": (x, [f], [0.0, 0.5], *first, rules.EDM_OUTPUT, [], None, []),
        "edm_output of numbers": (x, [f], [2.0, 0.5], [], [], rules.EDM_OUTPUT, [], None, []),
        "euler_maruyama": (x, [f], [0.0, 0.0], *both, rules.EULER_MARUYAMA, place, None, []),
        "folded": (x, [f, g], w2, *some, rules.FOLDED, place, None, []),
    }  # fmt: skip


@pytest.mark.parametrize("name", operator_arguments())
class TestOpcheck:
    def test_weighted_step(self, name):
        torch.library.opcheck(torch.ops.cmsolvers.weighted_step.default, operator_arguments()[name])

    @pytest.mark.parametrize("second", [SCALED, X0, PAIR])
    @pytest.mark.parametrize("dtype", [F64, F32])
    def test_weighted_step_two(self, name, second, dtype):
        arguments = operator_arguments()[name]
        if second == X0 and not arguments[1]:
            return
        op = torch.ops.cmsolvers.weighted_step_two.default
        torch.library.opcheck(op, (*arguments, second, dtype))

    @pytest.mark.parametrize("second", [NONE, PAIR])
    def test_weighted_step_out(self, name, second):
        arguments = operator_arguments()[name]
        x = arguments[0].detach()
        plain = (x, [m.detach() for m in arguments[1]], *arguments[2:])
        outs = (torch.empty_like(x), torch.empty_like(x) if second else None)
        torch.library.opcheck(
            torch.ops.cmsolvers.weighted_step_out.default, (*outs, *plain, second)
        )


LEVELS = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
NAMED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "euler_maruyama": lambda x, f: ops.euler_maruyama_step(x, f, 0.5, 0.1, seed=5, draw=1),
    "euler_maruyama, seeds": lambda x, f: ops.euler_maruyama_step(
        x, f, 0.5, 0.1, seed=torch.arange(3)
    ),
    "euler_maruyama, levels": lambda x, f: ops.euler_maruyama_step(x, f, LEVELS, 0.1, seed=5),
    "pf_ode": lambda x, f: ops.pf_ode_step(x, f, 2.0, 1.0),
    "pf_ode, levels": lambda x, f: ops.pf_ode_step(x, f, LEVELS, 0.25),
    "heun": lambda x, f: ops.heun_step(x, f, 2.0, 1.0, f * f),
    "consistency_output": lambda x, f: ops.consistency_output(x, f, 2.0),
    "edm_input": lambda x, f: ops.edm_input(x, LEVELS),
    "edm_input, dtype": lambda x, f: ops.edm_input(x, 2.0, dtype=F32).double(),
    "edm_output": lambda x, f: ops.edm_output(x, f, 2.0),
    "edm_output, levels": lambda x, f: ops.edm_output(x, f, LEVELS),
    "scale_input": lambda x, f: ops.scale_input(x, 0.5),
    "scale_input, dtype": lambda x, f: ops.scale_input(x, 0.5, dtype=F32).double(),
    "add_noise": lambda x, f: ops.add_noise(x, 0.5, seed=5),
    "add_noise, pair": lambda x, f: sum(ops.add_noise(x, 0.5, sigma_next=LEVELS, seed=5)),
    "clamp": lambda x, f: sum(
        ops.weighted_step(x, (f,), (0.5, 0.5), x0=(0.2, 0.9), clamp=(-1, 1), second="x0")
    ),
}  # fmt: skip


OF_LEVELS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "pf_ode": lambda x, f, s: ops.pf_ode_step(x, f, s, 0.5 * s),
    "heun": lambda x, f, s: ops.heun_step(x, f, s, 0.5 * s, 2 * f),
    "euler_maruyama": lambda x, f, s: ops.euler_maruyama_step(x, f, s, 0.1 * s, seed=1),
    "consistency": lambda x, f, s: ops.consistency_output(x, f, s),
    "consistency, sigma_min": lambda x, f, s: ops.consistency_output(x, f, 1.0, sigma_min=s),
    "edm_input": lambda x, f, s: ops.edm_input(x, s),
    "edm_output": lambda x, f, s: ops.edm_output(x, f, s),
    "add_noise": lambda x, f, s: ops.add_noise(x, s, seed=1),
    "scale_input": lambda x, f, s: ops.scale_input(x, s),
}


class TestCompile:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def check(self, step: Callable[..., Tensor], backend: str) -> None:
        compiled = torch.compile(
            lambda x, f: (step(torch.sin(x), f) * 2).cos(), fullgraph=True, backend=backend
        )
        results = []
        for call in (compiled, lambda x, f: (step(torch.sin(x), f) * 2).cos()):
            x, f = randn(3, 4).requires_grad_(), randn(3, 4, seed=1).requires_grad_()
            y = call(x, f)
            y.sum().backward()
            results.append((y, x.grad, torch.zeros(1) if f.grad is None else f.grad))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", NAMED)
    def test_forward_and_backward(self, name):
        self.check(NAMED[name], "aot_eager")

    def test_inductor(self):
        self.check(NAMED["euler_maruyama"], "inductor")

    def test_in_place(self):
        step = lambda x, f: ops.euler_maruyama_step(x, f, 0.5, 0.1, seed=5, out=x) + 1  # noqa: E731
        x, y, f = randn(3, 4), randn(3, 4), randn(3, 4, seed=1)
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(x, f)
        assert_same_bits((got, x), (step(y, f), y))

    @pytest.mark.parametrize("seed", ["int", "tensor"])
    def test_one_graph_for_all_steps(self, seed):
        """Draws that count up, levels in tensors and seeds: not compiled again and again."""
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        step = lambda x, f, sigma, draw, seed: ops.euler_maruyama_step(  # noqa: E731
            x, f, sigma, sigma * 0.1, seed=seed, draw=draw
        )
        compiled = torch.compile(step, fullgraph=True, backend=counter)
        x, f = randn(3, 4), randn(3, 4, seed=1)
        for draw in range(12):
            sigma = torch.tensor(1.0 + draw, dtype=F64)
            key = 40 + draw if seed == "int" else torch.arange(3) + draw
            assert_same_bits(compiled(x, f, sigma, draw, key), step(x, f, sigma, draw, key))
        assert counter.frame_count <= 3

    @pytest.mark.parametrize("name", OF_LEVELS)
    @pytest.mark.parametrize("grad", [False, True])
    def test_levels_as_numbers(self, name, grad):
        """Each is a constant of a graph of its own, up to torch's limit: the second one, too."""
        step = OF_LEVELS[name]
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        f = randn(3, 4, seed=1)
        for sigma in (1.0, 2.0, 0.7, 80.0, 0.002):
            x = randn(3, 4).requires_grad_(grad)
            mine, theirs = compiled(x, f, sigma), step(x, f, sigma)
            assert_same_bits(mine.detach(), theirs.detach())
            if grad:
                one, other = (torch.autograd.grad(y.sum(), x)[0] for y in (mine, theirs))
                assert_same_bits(one, other)

    def test_noise(self):
        ids = torch.tensor([4, 2, 9])
        for call in (
            lambda: noise.normal((3, 5), 7, draw=2),
            lambda: noise.normal((3, 5), 7, ids=ids),
            lambda: noise.normal((3, 5), ids),
            lambda: noise.uniform((3, 5), 7),
        ):
            torch._dynamo.reset()
            assert_same_bits(torch.compile(call, fullgraph=True, backend="aot_eager")(), call())

    def test_seed_from_the_global_generator(self):
        compiled = torch.compile(
            lambda x: ops.add_noise(x, 1.0, seed=None), fullgraph=True, backend="aot_eager"
        )
        x = torch.zeros(3, 4)
        torch.manual_seed(0)
        first, second = compiled(x), compiled(x)
        torch.manual_seed(0)
        assert_same_bits(compiled(x), first)
        assert not torch.equal(first, second)


@pytest.mark.parametrize("wrong", [False, True])
def test_gradcheck_can_fail(wrong):
    """Negative control: a step whose backward forgets an input does not pass."""

    class Forgets(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, f: Tensor) -> Tensor:
            return ops.pf_ode_step(x.detach(), f.detach(), 2.0, 1.0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            return 0.5 * grad, (0.0 if wrong else 0.5) * grad

    given = (randn(2, 3).requires_grad_(), randn(2, 3, seed=1).requires_grad_())
    assert gradcheck(Forgets.apply, given, raise_exception=False) is not wrong


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)], ids=["fast", "general"])
def test_a_backward_pass_notices_writing_in_place(clamp: tuple[float, float] | None) -> None:
    saved = torch.ones(2, 3)
    factor = torch.ones(2, 3, requires_grad=True)
    loss = (factor * saved).sum()  # keeps `saved` for the gradient of factor
    ops.weighted_step(saved, (saved,), (1.0, 1.0), clamp=clamp, out=saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class TestWeightsAreConstants:
    """A derivative with respect to a weight is refused, never silently zero."""

    X, M = randn(4, 3), randn(4, 3, seed=1)
    SIGMA = torch.full((4,), 2.0, dtype=F64)

    def step(self, x: Tensor, sigma: Tensor) -> Tensor:
        return ops.pf_ode_step(x, self.M, sigma, 0.5 * sigma)

    @pytest.mark.parametrize("with_x", [False, True])
    def test_forward_mode(self, with_x):
        with forward_ad.dual_level(), pytest.raises(ValueError, match="detach"):
            x = forward_ad.make_dual(self.X, self.X) if with_x else self.X
            self.step(x, forward_ad.make_dual(self.SIGMA, self.SIGMA))

    @pytest.mark.parametrize("with_x", [False, True])
    def test_func_jvp(self, with_x):
        call, given = (
            (self.step, (self.X, self.SIGMA))
            if with_x
            else (lambda sigma: self.step(self.X, sigma), (self.SIGMA,))
        )
        with pytest.raises(ValueError, match="detach"):
            func.jvp(call, given, given)

    @pytest.mark.parametrize("transform", ["grad", "jvp"])
    def test_vmap_inside(self, transform):
        many = torch.stack([self.X] * 5)
        sigmas = torch.stack([self.SIGMA] * 5)

        def call(sigmas: Tensor) -> Tensor:
            return func.vmap(self.step)(many, sigmas).sum()

        with pytest.raises(ValueError, match="detach"):
            if transform == "grad":
                func.grad(call)(sigmas)
            else:
                func.jvp(call, (sigmas,), (sigmas,))

    def test_weights_without_derivatives_pass(self):
        """Tensors of weights inside transforms that follow x alone."""
        many = torch.stack([self.X] * 5)
        sigmas = torch.stack([self.SIGMA] * 5)

        def call(x: Tensor) -> Tensor:
            return func.vmap(self.step)(x, sigmas)

        assert_same_bits(func.jvp(call, (many,), (many,))[1], 0.5 * many)
        assert_same_bits(func.grad(lambda x: call(x).sum())(many), torch.full_like(many, 0.5))


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("second", [None, 0.5, "x0"])
def test_forward_mode_of_one_lower_precision_input(clamp, second):
    """The other input has no tangent: zeros in its stead, of the inputs' dtype."""
    x = randn(4, 3, dtype=F32)
    a, b = randn(4, 3, seed=1, dtype=BF16), randn(4, 3, seed=2, dtype=BF16)

    def call(a: Tensor) -> Tensor:
        result = ops.weighted_step(x, (a, b), (1.0, 2.0, 3.0), clamp=clamp, second=second)
        return result[0] if isinstance(result, tuple) else result

    inside = torch.ones_like(x) if clamp is None else (a.abs() <= 1).float()
    assert torch.equal(func.jvp(call, (a,), (b,))[1], 2.0 * b.float() * inside)


def test_gradient_of_a_wider_second_output():
    """It may lie beyond the range of the state's dtype, though the gradient of x does not."""
    x = randn(4, 3, dtype=F16).requires_grad_()
    _, second = ops.weighted_step(x, (), (0.5,), second=1e-3, second_dtype=F32)
    second.backward(torch.full_like(second, 1e6))
    assert_same_bits(x.grad, torch.full_like(x, 500.0))


def test_jit_trace():
    """The short way into the kernel must not bake a result into a traced function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            lambda x, d: x + ops.pf_ode_step(x, d, 2.0, 1.0), (torch.ones(4, 3), torch.ones(4, 3))
        )
    x, d = randn(4, 3, dtype=F32), randn(4, 3, seed=1, dtype=F32)
    assert_same_bits(traced(x, d), x + ops.pf_ode_step(x, d, 2.0, 1.0))
