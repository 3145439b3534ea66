"""The size of a residual that is never stored: values, gradients, bits, transforms, bad input."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from cmsolvers import ops
from cmsolvers.ops import distance
from cmsolvers.ops.distance import KINDS
from support import cases
from support.exact import (
    SETS,
    assert_same_bits,
    instruction_set,
    reference_kernels,
    spacing,
    threads,
    wide,
)

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
WITH_C = [(kind, c) for kind in KINDS for c in ((0.0, 0.3) if "huber" in kind else (0.0,))]
SHAPES = [
    (64, 2), (5,), (1, 1), (3, 0), (0, 4), (7, 13), (2, 16), (3, 17), (2, 3, 17, 5), (2, 513),
    (2, 8192), (2, 8193), (1, 20_003), (4, 3, 32, 32),
]  # fmt: skip
MIXES = [
    (F32,), (F32, F32, F32, F32), (F32, BF16, F32, BF16), (BF16, F16), (F16,), (F64, F64),
    (F64, F32, F16, BF16, F64, F32),
]  # fmt: skip


def make(shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(dtypes))
    return [torch.randn(shape, generator=generator, dtype=F64).to(d) for d in dtypes]


def rows(batch: int, count: int, one: bool = False) -> Tensor:
    """Weights that differ from sample to sample; some are zero."""
    generator = torch.Generator().manual_seed(3 * count + 1)
    w = torch.randn(count, 1 if one else batch, generator=generator, dtype=F64)
    if count > 1 and not one:
        w[1, ::3] = 0.0
    return w


def exact(
    inputs: list[Tensor], w: Tensor, kind: str, c: float, off: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """In extended precision: the value, its bound, r, and the bound of r."""
    batch = len(inputs[0])
    r = np.zeros(tuple(inputs[0].shape), dtype=np.longdouble)
    size = np.zeros_like(r)
    for row, m in zip(w, inputs, strict=True):
        column = wide(row).reshape(-1, *[1] * (m.dim() - 1)) * off
        r, size = r + column * wide(m), size + np.abs(column * wide(m))
    unit = 2.0**-53 if any(m.dtype == F64 for m in inputs) else 2.0**-24
    # Each weight is rounded, and each fused multiply-add; what follows r rounds four times.
    slack = (len(inputs) + 1) * unit * size
    shape = (batch, math.prod(r.shape[1:]))
    flat, slack_flat = r.reshape(shape), slack.reshape(shape)
    if kind == "abs" or (kind == "huber" and c == 0):
        value, bound = np.abs(flat).sum(1), slack_flat.sum(1)
    elif kind == "huber":
        each = flat**2 / (np.sqrt(flat**2 + np.longdouble(c) ** 2) + np.longdouble(c))
        value, bound = each.sum(1), (slack_flat + 6 * unit * each).sum(1)
    else:
        value, bound = (flat**2).sum(1), (2 * np.abs(flat) * slack_flat + slack_flat**2).sum(1)
        if kind == "pseudo_huber":
            root = np.sqrt(value + np.longdouble(c) ** 2)
            bound = np.minimum(bound / np.maximum(root, 1e-300), np.sqrt(bound))
            value = root if c == 0 else value / (root + np.longdouble(c))
    return value, bound + 1e-13 * np.abs(value), r, slack


def assert_value(found: Tensor, want: np.ndarray, bound: np.ndarray, what: str = "") -> None:
    assert found.dtype == F64 and found.shape == want.shape, what
    assert (np.abs(wide(found) - want) <= bound).all(), what


def slope(r: np.ndarray, kind: str, c: float) -> np.ndarray:
    """The derivative of the value by r, in extended precision; that of a root by its sample."""
    if kind == "square":
        return 2 * r
    if kind == "abs" or (kind == "huber" and c == 0):
        return np.sign(r)
    if kind == "huber":
        return r / np.sqrt(r * r + np.longdouble(c) ** 2)
    square = (r.reshape(len(r), -1) ** 2).sum(1) + np.longdouble(c) ** 2
    return r / np.sqrt(square).reshape(-1, *[1] * (r.ndim - 1))


def general(*arguments: Any) -> Tensor:
    """The way around the fast call."""
    kept, distance.FAST = distance.FAST, None
    try:
        return ops.form_distance(*arguments)
    finally:
        distance.FAST = kept


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "c"), WITH_C)
def test_values(shape, kind, c):
    for dtypes in MIXES:
        inputs = make(shape, dtypes)
        for one in (False, True):
            w = rows(shape[0], len(dtypes), one)
            want, bound, *_ = exact(inputs, w, kind, c)
            assert_value(ops.form_distance(inputs, w, kind, c), want, bound, str(dtypes))
            assert_same_bits(
                general(inputs, w, kind, c), ops.form_distance(tuple(inputs), w, kind, c)
            )


@pytest.mark.parametrize(("kind", "c"), WITH_C)
def test_the_bounds_can_fail(kind, c):
    """Negative controls: weights 2e-5 beside, another kind, another c."""
    inputs, w = make((4, 3, 32, 32), (F32, F32, F32)), rows(4, 3)
    found = ops.form_distance(inputs, w, kind, c)
    assert_value(found, *exact(inputs, w, kind, c)[:2])
    wrong = [exact(inputs, w, kind, c, off=1 + 2e-5)]
    same = [("abs", 0.0), ("huber", 0.0)]
    others = [o for o in WITH_C if o != (kind, c) and not (o in same and (kind, c) in same)]
    wrong += [exact(inputs, w, *other) for other in others]
    if c:
        wrong.append(exact(inputs, w, kind, 1.001 * c))
    for value, bound, *_ in wrong:
        with pytest.raises(AssertionError):
            assert_value(found, value, bound)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "c"), WITH_C)
def test_gradients(shape, kind, c):
    for dtypes in MIXES:
        inputs = [m.requires_grad_() for m in make(shape, dtypes)]
        w = rows(shape[0], len(dtypes))
        g = torch.linspace(-2.0, 3.0, shape[0], dtype=F64)
        grads = torch.autograd.grad(ops.form_distance(inputs, w, kind, c), inputs, g)
        if math.prod(shape) == 0:
            assert all(grad.shape == shape for grad in grads)
            continue
        _, _, r, slack = exact(inputs, w, kind, c)
        s = slope(r, kind, c)
        unit = 2.0**-53 if F64 in dtypes else 2.0**-24
        for grad, m, row in zip(grads, inputs, w, strict=True):
            assert grad.dtype == m.dtype and grad.stride() == m.stride()
            column = wide(row * g).reshape(-1, *[1] * (m.dim() - 1))
            want = column * s
            if kind == "abs" or (kind == "huber" and c == 0):
                steep = np.where(np.abs(r) <= slack, 2.0, 0.0)  # the sign is lost there
            elif kind == "huber":
                steep = np.minimum(slack / c, 2.0)
            elif kind == "square":
                steep = 2 * slack
            else:
                steep = slack * np.abs(s / np.where(r == 0, 1, r)) + 1e-6 * np.abs(s)
            allowed = np.abs(column) * steep + 8 * unit * np.abs(want)
            if grad.dtype != (F64 if F64 in dtypes else F32):
                allowed = allowed + spacing(want, grad.dtype)
            assert (np.abs(wide(grad) - want) <= allowed + 1e-45).all(), (str(dtypes), grad.dtype)


def test_gradients_that_are_not_wanted_are_not_made():
    inputs, w = make((4, 33), (F32, F32, F32)), rows(4, 3, one=True)
    inputs[1].requires_grad_()
    ops.form_distance(inputs, w).sum().backward()
    assert inputs[0].grad is None and inputs[2].grad is None
    every = [m.detach().requires_grad_() for m in inputs]
    ops.form_distance(every, w).sum().backward()
    assert_same_bits(inputs[1].grad, every[1].grad)


def test_instruction_sets_same_bits():
    """Sums have one order everywhere: that of csrc/loss/cpu_kernel.h."""
    for kind, c in WITH_C:
        for shape in SHAPES:
            for dtypes in MIXES:
                found = []
                for name in SETS:
                    inputs = [m.requires_grad_() for m in make(shape, dtypes)]
                    with instruction_set(name):
                        value = ops.form_distance(inputs, rows(shape[0], len(dtypes)), kind, c)
                        grads = torch.autograd.grad(value.sum(), inputs)
                    found.append((value.detach(), *grads))
                for other in found[1:]:
                    assert_same_bits(other, found[0], f"{kind} {shape} {dtypes}")


@pytest.mark.parametrize(("kind", "c"), WITH_C)
def test_batch_and_threads_do_not_matter(kind, c):
    inputs, w = make((7, 3, 40, 99), (F32, BF16, F32)), rows(7, 3)
    whole = ops.form_distance(inputs, w, kind, c)
    for count in (1, 2, 3):
        with threads(count):
            assert_same_bits(ops.form_distance(inputs, w, kind, c), whole)
            part = ops.form_distance([m[2:5] for m in inputs], w[:, 2:5], kind, c)
            assert_same_bits(part, whole[2:5])
    many = torch.randn(1000, 2)
    for count in (1, 3):
        with threads(count):
            ones = [ops.form_distance([row[None]], torch.ones(1, 1).double()) for row in many]
            assert_same_bits(ops.form_distance([many], torch.ones(1, 1).double()), torch.cat(ones))


LAYOUTS = [
    cases.dense, cases.channels_last, cases.transposed, cases.misaligned, cases.strided,
]  # fmt: skip


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
def test_layouts(first, second):
    w = rows(4, 2)
    for kind, c in WITH_C:
        plain = [m.requires_grad_() for m in make((4, 3, 6, 5), (F32, F16))]
        want = ops.form_distance(plain, w, kind, c)
        grads = torch.autograd.grad(want.sum(), plain)
        laid = [f(m.detach()).requires_grad_() for f, m in zip((first, second), plain, strict=True)]
        found = ops.form_distance(laid, w, kind, c)
        torch.testing.assert_close(found, want, rtol=1e-13, atol=0)
        for grad, other, m in zip(torch.autograd.grad(found.sum(), laid), grads, laid, strict=True):
            torch.testing.assert_close(grad, other, rtol=1e-3, atol=0)
            assert grad.stride() == torch.empty_like(m).stride()


def test_batch_innermost():
    laid = [m.permute(2, 0, 1) for m in make((5, 3, 4), (F32, F32))]
    found = ops.form_distance(laid, rows(4, 2))
    assert_same_bits(found, ops.form_distance([m.contiguous() for m in laid], rows(4, 2)))


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize(("kind", "c"), WITH_C)
def test_plain_torch_twin(kind, c):
    for shape in SHAPES[::2]:
        for dtypes in MIXES:
            inputs = [m.requires_grad_() for m in make(shape, dtypes)]
            w = rows(shape[0], len(dtypes))
            value = ops.form_distance(inputs, w, kind, c)
            grads = torch.autograd.grad(value.sum(), inputs)
            with reference_kernels():
                twin = ops.form_distance(inputs, w, kind, c)
                others = torch.autograd.grad(twin.sum(), inputs)
            torch.testing.assert_close(twin, value, rtol=1e-5, atol=1e-6)
            for grad, other in zip(grads, others, strict=True):
                near = 1e-2 if grad.dtype in (F16, BF16) else 1e-4
                off = (grad.double() - other.double()).abs() > near * (1 + grad.double().abs())
                assert int(off.sum()) <= 1, (dtypes, kind)  # a sign that rounding decides


G = torch.tensor([1.5, 0.0, -2.0], dtype=F64)
"""Gradients that come back to three samples."""


def kernel_gradients(inputs: Any, w: Tensor, kind: Any, c: float, g: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(ops.form_distance(inputs, w, kind, c), inputs, g)


def torch_gradients(inputs: Any, w: Tensor, kind: Any, c: float, g: Tensor) -> tuple[Tensor, ...]:
    """By formulas in torch, which can be differentiated again."""
    made = ops.form_distance(inputs, w, kind, c)
    return torch.autograd.grad(made, inputs, g, create_graph=True)


def batched_gradients(inputs: Any, w: Tensor, kind: Any, c: float, g: Tensor) -> list[Tensor]:
    made = ops.form_distance(inputs, w, kind, c)
    both = torch.stack((g, 2 * g))
    return [grad[0] for grad in torch.autograd.grad(made, inputs, both, is_grads_batched=True)]


def vmapped_gradients(inputs: Any, w: Tensor, kind: Any, c: float, g: Tensor) -> Any:
    """With samples of a batch of one each, which vmap makes a batch of."""

    def one(w: Tensor, *given: Tensor) -> Tensor:
        return ops.form_distance([m[None] for m in given], w[:, None], kind, c)[0]

    made = torch.vmap(one, in_dims=(1, *[0] * len(inputs)))(w, *inputs)
    return torch.autograd.grad(made, inputs, g)


def compiled_gradients(inputs: Any, w: Tensor, kind: Any, c: float, g: Tensor) -> Any:
    call = lambda *given: (ops.form_distance(given, w, kind, c) * g).sum()  # noqa: E731
    made = torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs)
    return torch.autograd.grad(made, inputs)


GRADIENTS: dict[str, Callable[..., Any]] = {
    "kernel": kernel_gradients,
    "torch": torch_gradients,
    "batched": batched_gradients,
    "vmap": vmapped_gradients,
    "compiled": compiled_gradients,
}
LEFT_OUT = {**GRADIENTS, "twin": kernel_gradients}


def assert_left_out(
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    kind: str,
    c: float,
    bad: float,
    gradients: Callable[..., Any] = kernel_gradients,
) -> None:
    """Sample 1, which is bad and to which 0 comes back, has gradients 0; the others their own."""
    inputs, w = [m.requires_grad_() for m in make(shape, dtypes)], rows(shape[0], len(dtypes))
    want = gradients(inputs, w, kind, c, G)
    with torch.no_grad():
        inputs[0][1, -1] = bad
    found = gradients(inputs, w, kind, c, G)
    for grad, other in zip(found, want, strict=True):
        assert (grad[1] == 0).all()
        torch.testing.assert_close(grad, other, rtol=0, atol=0)
        assert (other[[0, 2]] != 0).any()
    if math.isnan(bad):  # the control; a sign of inf is a number
        spoilt = gradients(inputs, w, kind, c, torch.ones_like(G))
        assert spoilt[0][1].isnan().any()
        assert spoilt[0][[0, 2]].isfinite().all()


class TestSpecialValues:
    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize("bad", [math.inf, math.nan])
    def test_zero_weights_drop_their_term(self, bad, name):
        for shape in ((3, 2), (3, 1000)):
            good, poison = torch.randn(shape), torch.full(shape, bad)
            w = torch.tensor([[1.0], [0.0]], dtype=F64)
            for kind, c in WITH_C:
                with instruction_set(name):
                    inputs = [good.clone().requires_grad_(), poison.clone().requires_grad_()]
                    found = ops.form_distance(inputs, w, kind, c)
                    grads = torch.autograd.grad(found.sum(), inputs)
                    alone = ops.form_distance([good], w[:1], kind, c)
                    spoilt = ops.form_distance([poison, good], w, kind, c)
                assert_same_bits(found.detach(), alone)
                assert grads[0].isfinite().all() and (grads[1] == 0).all()
                assert not spoilt.isfinite().any()  # negative control

    @pytest.mark.parametrize(("kind", "c"), WITH_C)
    def test_a_bad_row_spoils_no_other(self, kind, c):
        inputs = [m.requires_grad_() for m in make((4, 100), (F32, F32))]
        with torch.no_grad():
            inputs[0][2, 7] = math.nan
        value = ops.form_distance(inputs, rows(4, 2), kind, c)
        grads = torch.autograd.grad(value.sum(), inputs)
        for t in (value, *grads):
            assert t[[0, 1, 3]].isfinite().all() and not t[2].isfinite().all()

    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.parametrize(("kind", "c"), WITH_C)
    def test_no_gradient_is_none_whatever_the_residual(self, kind, c, name):
        """Where 0 comes back to a sample, 0 goes on to its inputs, not 0 * NaN."""
        for shape, dtypes in (((3, 2), (F32,)), ((3, 1000), (BF16, F32)), ((3, 9000), (F64, F16))):
            for bad in (math.nan, math.inf):
                with instruction_set(name):
                    assert_left_out(shape, dtypes, kind, c, bad)

    @pytest.mark.filterwarnings("ignore:Warning only once for all operators")
    @pytest.mark.parametrize("path", LEFT_OUT)
    @pytest.mark.parametrize(("kind", "c"), WITH_C)
    def test_no_gradient_is_none_on_every_path(self, kind, c, path):
        for bad in (math.nan, math.inf):
            if path == "twin":
                with reference_kernels():
                    assert_left_out((3, 5), (F32, BF16), kind, c, bad)
            else:
                assert_left_out((3, 5), (F32, BF16), kind, c, bad, LEFT_OUT[path])

    @pytest.mark.parametrize("path", ["kernel", "torch"])
    def test_no_gradient_is_none_for_a_weight_that_is_not_finite(self, path):
        for kind, c in WITH_C:
            w = torch.tensor([[1.0, math.nan, 2.0], [1.0, math.inf, 2.0]], dtype=F64)
            inputs = [m.requires_grad_() for m in make((3, 5), (F32, F32))]
            grads = GRADIENTS[path](inputs, w, kind, c, G)
            assert all((grad[1] == 0).all() and grad.isfinite().all() for grad in grads)
            spoilt = GRADIENTS[path](inputs, w, kind, c, torch.ones(3, dtype=F64))
            assert not all(grad[1].isfinite().all() for grad in spoilt)

    @pytest.mark.parametrize(("kind", "c"), WITH_C)
    def test_the_derivative_by_the_gradient_stays_where_that_is_zero(self, kind, c):
        inputs, w = [m.requires_grad_() for m in make((3, 5), (F64, F64))], rows(3, 2)
        with torch.no_grad():
            inputs[0][1, 2] = math.nan
        g = torch.zeros(3, dtype=F64, requires_grad=True)
        value = ops.form_distance(inputs, w, kind, c)
        back = torch.autograd.grad(value, inputs, g, create_graph=True)
        (by_g,) = torch.autograd.grad(sum(grad.sum() for grad in back), g)
        plain = torch.autograd.grad(ops.form_distance(inputs, w, kind, c).sum(), inputs)
        want = sum(grad.sum(1) for grad in plain)
        torch.testing.assert_close(by_g[[0, 2]], want[[0, 2]])
        assert (want[[0, 2]] != 0).all() and by_g[1].isfinite() and want[1].isnan()

    @pytest.mark.parametrize("path", ["kernel", "torch"])
    def test_no_residual(self, path):
        """At r = 0 every gradient is 0: no 0 / 0."""
        for kind, c in WITH_C:
            m = torch.zeros(3, 5, requires_grad=True)
            value = ops.form_distance([m], torch.ones(1, 1, dtype=F64), kind, c)
            (grad,) = torch.autograd.grad(value.sum(), m, create_graph=path == "torch")
            assert (value == 0).all() and (grad == 0).all()

    @pytest.mark.parametrize("name", SETS)
    def test_large_residuals(self, name):
        m = torch.tensor([[1e30, -2e30, 1e25], [3.0, 4.0, 1e-30]], requires_grad=True)
        w = torch.ones(1, 1, dtype=F64)
        with instruction_set(name):
            value = ops.form_distance([m], w, "huber", 0.5)
            (grad,) = torch.autograd.grad(value.sum(), m)
        want = exact([m.detach().double()], w, "huber", 0.5)[0]
        torch.testing.assert_close(value, torch.tensor(want.astype(float)), rtol=1e-6, atol=0)
        assert grad[0].tolist() == [1.0, -1.0, 1.0]
        square = ops.form_distance([m.detach()], w)  # float64 holds what float32 does not
        torch.testing.assert_close(square, m.detach().double().square().sum(1))

    def test_cancellation(self):
        """Terms of 80 that leave 1e-3: fused multiply-adds lose no more than the roundings."""
        x = 80 * torch.randn(4, 3000)
        w = torch.tensor([[0.75], [-0.75]], dtype=F64)
        inputs = [x, x + 1e-3]
        want, bound, *_ = exact(inputs, w, "square", 0.0)
        assert_value(ops.form_distance(inputs, w), want, bound)
        assert (bound < want).all()


def functions(kind: str, c: float, w: Tensor) -> Callable[..., Tensor]:
    return lambda *inputs: ops.form_distance(inputs, w, kind, c)


@pytest.mark.parametrize(("kind", "c"), WITH_C)
class TestDerivatives:
    def test_gradcheck(self, kind, c):
        inputs = [m.requires_grad_() for m in make((3, 5), (F64, F64, F64))]
        call = functions(kind, c, rows(3, 3))
        assert gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(call, inputs)

    def test_second_order_is_that_of_torch(self, kind, c):
        inputs, w = make((3, 5), (F64, F64)), rows(3, 2)

        def plain(*given: Tensor) -> Tensor:
            return distance.plain_distance(given, w, KINDS.index(kind), c).sum()

        ours = torch.autograd.functional.hessian(
            lambda *given: functions(kind, c, w)(*given).sum(), tuple(inputs)
        )
        theirs = torch.autograd.functional.hessian(plain, tuple(inputs))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)

    def test_transforms(self, kind, c):
        inputs, w = make((3, 5), (F64, F64)), rows(3, 2)
        leaves = [m.clone().requires_grad_() for m in inputs]
        value = functions(kind, c, w)(*leaves)
        grads = torch.autograd.grad(value.sum(), leaves)
        total = lambda *given: functions(kind, c, w)(*given).sum()  # noqa: E731
        torch.testing.assert_close(func.grad(total, argnums=(0, 1))(*inputs), grads)
        ones = tuple(torch.ones_like(m) for m in inputs)
        _, tangent = func.jvp(total, tuple(inputs), ones)
        torch.testing.assert_close(tangent, grads[0].sum() + grads[1].sum())
        with forward_ad.dual_level():
            dual = [forward_ad.make_dual(m, t) for m, t in zip(inputs, ones, strict=True)]
            found = forward_ad.unpack_dual(total(*dual)).tangent
        torch.testing.assert_close(found, tangent)
        stacked = [torch.stack((m, 2 * m)) for m in inputs]
        want = torch.stack((functions(kind, c, w)(*inputs), functions(kind, c, w)(
            *[2 * m for m in inputs]
        )))  # fmt: skip
        torch.testing.assert_close(torch.vmap(functions(kind, c, w))(*stacked), want)
        found = torch.vmap(functions(kind, c, w), in_dims=(1, None))(
            stacked[0].transpose(0, 1), inputs[1]
        )
        first = functions(kind, c, w)(2 * inputs[0], inputs[1])
        torch.testing.assert_close(found[1], first)
        each = torch.vmap(func.grad(total))(*stacked)
        torch.testing.assert_close(each[0], grads[0])
        over = func.grad(lambda a, b: torch.vmap(functions(kind, c, w))(a, b).sum())(*stacked)
        torch.testing.assert_close(over, each)

    def test_compiled(self, kind, c):
        inputs, w = make((4, 6), (F32, BF16, F32)), rows(4, 3)
        leaves = [m.clone().requires_grad_() for m in inputs]
        again = [m.clone().requires_grad_() for m in inputs]
        call = lambda a, b, d, w: ops.form_distance([a, b, d], w, kind, c).mean()  # noqa: E731
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        left, right = compiled(*leaves, w), call(*again, w)
        left.backward()
        right.backward()
        assert_same_bits(left.detach(), right.detach())
        for a, b in zip(leaves, again, strict=True):
            assert_same_bits(a.grad, b.grad)


WITHOUT_BINARY = """
import math, sys, warnings
sys.modules["cmsolvers._C"] = None
warnings.simplefilter("ignore")
import torch
from torch.autograd import gradcheck, gradgradcheck
from cmsolvers import ops
assert not ops.build_info()["extension"]
w = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
good = torch.linspace(-1.0, 1.3, 6).double().reshape(3, 2)
for kind in ("square", "abs", "huber", "pseudo_huber"):
    call = lambda a, b: ops.form_distance((a, b), w, kind, 0.3)
    given = [good.clone().requires_grad_(), good.sin().requires_grad_()]
    assert gradcheck(call, given, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, given)
    torch.testing.assert_close(
        torch.func.grad(lambda a: call(a, given[1].detach()).sum())(given[0].detach()),
        torch.autograd.grad(call(*given).sum(), given)[0],
    )
    with torch.no_grad():
        given[1][1, 0] = math.nan
    made = torch.compile(call, fullgraph=True, backend="aot_eager")
    for run in (call, made):
        grads = torch.autograd.grad(run(*given), given, torch.tensor([1.0, 0.0, 1.0]).double())
        assert all(g.isfinite().all() and (g[1] == 0).all() and (g[0] != 0).any() for g in grads)
        spoilt = torch.autograd.grad(run(*given).sum(), given)
        assert spoilt[0][1].isnan().any()
"""


def test_without_the_binary():
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_BINARY]
    env = {name: value for name, value in os.environ.items() if not name.startswith("CMSOLVERS_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]


def test_registration():
    op, back = torch.ops.cmsolvers.form_distance, torch.ops.cmsolvers.form_distance_backward
    for shape in ((4, 7), (4, 3, 5, 6)):
        inputs, w = make(shape, (F32, BF16, F64)), rows(4, 3)
        if len(shape) == 4:
            inputs[1] = cases.channels_last(inputs[1])
        for kind in range(4):
            torch.library.opcheck(op, (inputs, w, kind, 0.5))
            torch.library.opcheck(op, ([m.requires_grad_() for m in inputs], w, kind, 0.5))
            inputs = [m.detach() for m in inputs]
            value = op(inputs, w, kind, 0.5)
            torch.library.opcheck(
                back, (torch.ones_like(value), inputs, w, value, kind, 0.5, [True, False, True])
            )


class TestAroundAutograd:
    def test_autocast(self):
        inputs, w = make((4, 9), (F32, BF16)), rows(4, 2)
        want = ops.form_distance(inputs, w)
        with torch.autocast("cpu", dtype=BF16):
            assert_same_bits(ops.form_distance(inputs, w), want)
            assert_same_bits(general(inputs, w), want)

    def test_checkpointing(self):
        inputs, w = make((4, 9), (F32, F32)), rows(4, 2)
        leaves = [m.clone().requires_grad_() for m in inputs]
        again = [m.clone().requires_grad_() for m in inputs]
        call = lambda a, b: ops.form_distance((a * 2, b), w, "huber", 0.1)  # noqa: E731
        call(*leaves).sum().backward()
        checkpoint(call, *again, use_reentrant=False).sum().backward()
        for a, b in zip(leaves, again, strict=True):
            assert_same_bits(a.grad, b.grad)

    def test_an_input_that_was_written_to_is_noticed(self):
        m = torch.randn(4, 9)
        f = torch.randn(4, 9, requires_grad=True)
        value = ops.form_distance((m, f), rows(4, 2))
        m.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.sum().backward()

    def test_nothing_is_kept_but_inputs(self):
        inputs, w = make((4, 900), (F32, F32)), rows(4, 2)
        inputs[0].requires_grad_()
        kept: list[Tensor] = []

        def pack(t: Tensor) -> Tensor:
            kept.append(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            ops.form_distance(inputs, w, "pseudo_huber", 0.1)
        large = [t for t in kept if t.numel() > 100]
        assert {t.data_ptr() for t in large} == {m.data_ptr() for m in inputs}

    def test_no_grad_and_detached(self):
        m = torch.randn(4, 9, requires_grad=True)
        with torch.no_grad():
            assert not ops.form_distance((m,), rows(4, 1)).requires_grad
        assert ops.form_distance((m,), rows(4, 1)).requires_grad
        with torch.inference_mode():
            ops.form_distance((torch.randn(4, 9),), rows(4, 1))


GOOD: dict[str, Any] = {"inputs": [torch.zeros(2, 3)] * 2, "weights": rows(2, 2)}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"inputs": torch.zeros(2, 2, 3)}, TypeError, "inputs must be a list or tuple of tensors"),
        ({"inputs": []}, ValueError, "inputs must hold 1 to 6 tensors; got 0"),
        ({"inputs": [torch.zeros(2, 3)] * 7}, ValueError, "1 to 6 tensors; got 7"),
        ({"inputs": [torch.zeros(2, 3), 1.0]}, TypeError, r"inputs\[1\] must be a tensor; got"),
        ({"inputs": [torch.zeros(2, 3).int()] * 2}, TypeError, r"inputs\[0\] must be float64"),
        ({"inputs": [torch.zeros(())] * 2}, ValueError, "must have a batch dimension"),
        (
            {"inputs": [torch.zeros(2, 3), torch.zeros(2, 4)]},
            ValueError,
            r"inputs\[1\] must have the shape of inputs\[0\], \[2, 3\]; got \[2, 4\]",
        ),
        (
            {"inputs": [torch.zeros(2, 3), torch.zeros(2, 3, device="meta")]},
            ValueError,
            r"inputs\[1\] must be on the device of inputs\[0\], cpu; got meta",
        ),
        ({"weights": 1.0}, TypeError, "weights must be a tensor; got float"),
        ({"weights": rows(2, 2).float()}, TypeError, "weights must be float64"),
        ({"weights": rows(2, 3)}, ValueError, r"weights must have shape \[2, 2\] or \[2, 1\]"),
        ({"weights": rows(3, 2)}, ValueError, "weights must have 2 or 1 as its last size"),
        ({"weights": rows(2, 2).requires_grad_()}, ValueError, "must not require a gradient"),
        ({"kind": "l2"}, ValueError, "kind must be one of 'square', 'abs', 'huber'"),
        ({"kind": 0}, TypeError, "kind must be a str; got 0"),
        ({"c": -1.0}, ValueError, r"c must be 0 or lie in \[1e-15, 1e\+15\]; got -1.0"),
        ({"c": 1e-20}, ValueError, "c must be 0 or lie in"),
        ({"c": math.nan}, ValueError, "c must be 0 or lie in"),
        ({"c": 10**400}, ValueError, "c must be a number that float64 holds"),
    ],
)
def test_bad_input(given, error, text):
    ops.form_distance(**GOOD)
    with pytest.raises(error, match=text):
        ops.form_distance(**{**GOOD, **given})
