"""Fast calls around a consistency pair: weights and times, a look at levels, the reduction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from cmsolvers import ops
from cmsolvers.ops import pair_rows
from cmsolvers.ops.binary import C
from cmsolvers.ops.pair_rows import ALL_ZERO, EQUAL, LOOK, SOME_ZERO
from cmsolvers.ops.reduction import FAST_REDUCED

F64 = torch.float64
needs_extension = pytest.mark.skipif(C is None, reason="no compiled extension")

HIGH = torch.tensor([0.002, 0.01, 0.7, 80.0, 5.0], dtype=F64)
LOW = torch.tensor([0.001, 0.002, 0.5, 79.0, 0.0], dtype=F64)


def exact(high: Tensor, low: Tensor, data: float, least: float) -> tuple[Tensor, Tensor]:
    """The weights by their formulas, a sample at a time (Song et al. 2023, appendix C)."""
    noise, residual = torch.empty(2, 2, len(high), dtype=F64), torch.empty(4, len(high), dtype=F64)
    for b in range(len(high)):
        for k, level in enumerate((float(high[b]), float(low[b]))):
            c_in = 1.0 / math.hypot(level, data)
            skip = data**2 / ((level - least) ** 2 + data**2)
            out = data * (level - least) * c_in
            if k == 1 and level == 0.0:
                skip, out = 1.0, 0.0
            sign = (1.0, -1.0)[k]
            noise[k, :, b] = torch.tensor([c_in, c_in * level], dtype=F64)
            residual[2 * k, b], residual[2 * k + 1, b] = sign * skip / c_in, sign * out
    return noise, residual


def test_weights_are_those_of_the_formulas() -> None:
    noise, residual, told, told_next = ops.consistency_inputs(HIGH, LOW, 0.5, 0.002, 0.25)
    want = exact(HIGH, LOW, 0.5, 0.002)
    torch.testing.assert_close((noise, residual), want, rtol=1e-14, atol=1e-15)
    assert residual[1, 0] == 0.0 and residual[3, 1] == 0.0  # sigma_min itself
    torch.testing.assert_close(told, (0.25 * HIGH.log()).float())
    torch.testing.assert_close(told_next, (0.25 * LOW.log()).float())
    assert told.data_ptr() != told_next.data_ptr()
    with pytest.raises(AssertionError):
        torch.testing.assert_close((noise, residual), exact(HIGH, LOW, 0.51, 0.002))


def test_without_a_factor_there_are_no_times() -> None:
    assert len(ops.consistency_inputs(HIGH, LOW)) == 2


@needs_extension
@pytest.mark.parametrize("factor", [0.0, 250.0])
def test_the_kernel_is_its_twin(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    strided = torch.stack((HIGH, LOW), dim=1)
    found = ops.consistency_inputs(strided[:, 0], strided[:, 1], 0.6, 0.01, factor)
    monkeypatch.setattr(pair_rows, "FAST_INPUTS", None)
    want = ops.consistency_inputs(HIGH, LOW, 0.6, 0.01, factor)
    assert len(found) == len(want)
    for one, other in zip(found[:2], want[:2], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found[2:], want[2:], rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("high", "low", "error"),
    [
        (HIGH.float(), LOW, "sigma must be a float64 tensor"),
        (HIGH, LOW[:3], "sigma_next must have shape"),
    ],
)
def test_bad_levels_are_named(high: Tensor, low: Tensor, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        ops.consistency_inputs(high, low)


@needs_extension
@pytest.mark.parametrize(
    ("t", "s", "found"),
    [
        ([2.0, 1.0], [1.0, 0.5], 0),
        ([2.0, 1.0], [1.0, 1.0], EQUAL),
        ([2.0, 1.0], [1.0, 0.0], SOME_ZERO),
        ([2.0, 1.0], [0.0, 0.0], SOME_ZERO | ALL_ZERO),
        ([2.0, 1.0], [1.0, 1.5], None),
        ([2.0, 0.0], [1.0, 0.0], None),
        ([2.0, 1.0], [1.0, -1.0], None),
        ([2.0, math.nan], [1.0, 0.5], None),
        ([2.0, 1.0], [math.nan, 0.5], None),
        ([math.inf, 1.0], [1.0, 0.5], None),
        ([2.0, 9.0], [1.0, 0.5], None),
        ([2.0, 1.0, 1.0], [1.0, 0.5, 0.5], None),
    ],
)
def test_look_at_levels(t: list[float], s: list[float], found: int | None) -> None:
    assert LOOK is not None
    both = torch.tensor(t, dtype=F64), torch.tensor(s, dtype=F64)
    assert LOOK(torch.zeros(2, 3), *both, 8.0) == found
    strided = torch.stack(both, dim=1)
    assert LOOK(torch.zeros(2, 3), strided[:, 0], strided[:, 1], 8.0) == found


@needs_extension
def test_look_takes_nothing_else() -> None:
    assert LOOK is not None
    t, s = torch.tensor([2.0, 1.0], dtype=F64), torch.tensor([1.0, 0.5], dtype=F64)
    x = torch.zeros(2, 3)
    assert LOOK(x, t, s, math.inf) == 0
    assert LOOK(x, t, s[:, None], 8.0) is None
    assert LOOK(x, t.float(), s, 8.0) is None
    assert LOOK(x.long(), t, s, 8.0) is None
    assert LOOK(torch.zeros(()), t, s, 8.0) is None
    assert LOOK(x, t.clone().requires_grad_(), s, 8.0) is None
    assert LOOK(x, 2.0, s, 8.0) is None


@needs_extension
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_reduction(weighted: bool, dtype: torch.dtype, scale: float) -> None:
    assert FAST_REDUCED is not None
    value = torch.linspace(0.1, 3.0, 5, dtype=F64).requires_grad_()
    weight = torch.linspace(2.0, -1.0, 5, dtype=F64) if weighted else None
    made = FAST_REDUCED(value, weight, scale, dtype)
    assert made is not None
    loss, terms = made
    want = value if weight is None else value * weight
    assert loss.dtype is terms.dtype is dtype and not terms.requires_grad
    torch.testing.assert_close(loss, (want.sum() * scale).to(dtype))
    torch.testing.assert_close(terms, want.detach().to(dtype))
    (gradient,) = torch.autograd.grad(3.0 * loss, value)
    whole = torch.full_like(terms, 3.0 * scale, dtype=F64)
    torch.testing.assert_close(gradient, whole if weight is None else weight * 3.0 * scale)


@needs_extension
def test_reduction_can_be_differentiated_twice() -> None:
    assert FAST_REDUCED is not None
    weight = torch.linspace(2.0, -1.0, 5, dtype=F64)

    def square(x: Tensor) -> Tensor:
        made = FAST_REDUCED(x * x, weight, 0.5, F64)
        assert made is not None
        return made[0] ** 2

    x = torch.linspace(0.1, 3.0, 5, dtype=F64).requires_grad_()
    assert gradcheck(square, (x,)) and gradgradcheck(square, (x,))


@needs_extension
def test_reduction_leaves_the_rest() -> None:
    assert FAST_REDUCED is not None
    value, weight = torch.ones(3, dtype=F64), torch.ones(3, dtype=F64)
    for bad in (math.nan, math.inf):
        assert FAST_REDUCED(torch.tensor([1.0, bad], dtype=F64), None, 1.0, F64) is None
    assert FAST_REDUCED(value, weight[:2], 1.0, F64) is None
    assert FAST_REDUCED(value, weight.float(), 1.0, F64) is None
    assert FAST_REDUCED(value, weight.requires_grad_(), 1.0, F64) is None
    assert FAST_REDUCED(value[:0], None, 1.0, F64) is None
    assert FAST_REDUCED(value, None, 1.0, torch.float16) is None
