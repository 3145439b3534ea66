"""Derivatives of steps beside a clamp, against autograd of the same written in torch, in float64.

Some elements lie inside the bounds and some outside; what the clamp holds passes nothing on, and
all that stands beside it does.
"""

import itertools

import pytest
import torch

from cmsolvers import ops
from support.columns import column

F64 = torch.float64
BOUNDS = (-0.4, 0.5)
COLUMN = torch.tensor([0.5, -0.3, 1.2, 0.8], dtype=F64)
BASES = {
    "D": None,
    "numbers": (0.6, 0.7),
    "c_skip rows": (COLUMN, 0.7),
    "c_out rows": (0.6, COLUMN),
}
SECONDS = {
    "none": None,
    "x0": "x0",
    "scaled": 0.7,
    "rows": COLUMN,
    "pair": ("pair", 0.3, 0.0),
    "pair of rows": ("pair", COLUMN, 0.0),
}
WEIGHTS = {"numbers": (0.4, -0.9, 0.3, 0.2, 0.7), "rows": (COLUMN, -0.9, 0.3 * COLUMN, 0.2, 0.7)}


def by_hand(x, inputs, weights, x0, clamp, second):
    d = inputs[0] if x0 is None else column(x0[0]) * x + column(x0[1]) * inputs[0]
    d = d.clamp(*clamp)
    y = column(weights[0]) * x + column(weights[1]) * d
    for w, m in zip(weights[2:], inputs[1:], strict=True):
        y = y + column(w) * m
    if second is None:
        return (y,)
    if isinstance(second, str):
        return y, d
    return y, column(second[1]) * x if isinstance(second, tuple) else column(second) * y


def both_ways(count, weights, basis, second):
    """The step and its transcription, as functions of x and the inputs that return tuples."""
    told = {"x0": BASES[basis], "clamp": BOUNDS, "second": SECONDS[second]}
    row = WEIGHTS[weights][: count + 1]

    def step(x, *inputs):
        made = ops.weighted_step(x, inputs, row, **told)
        return made if isinstance(made, tuple) else (made,)

    return step, lambda x, *inputs: by_hand(x, inputs, row, **told)


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("basis", BASES)
def test_derivatives_beside_a_clamp(basis, second):
    g = torch.Generator().manual_seed(3)

    def some(like):
        return tuple(torch.randn(t.shape, dtype=F64, generator=g) for t in like)

    for count, weights in itertools.product((1, 2, 4), WEIGHTS):
        points = some([torch.empty(4, 3)] * (count + 1))
        step, hand = both_ways(count, weights, basis, second)
        got, pull = torch.func.vjp(step, *points)
        expected, pull_by_hand = torch.func.vjp(hand, *points)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-14)
        arrows = some(got)
        torch.testing.assert_close(pull(arrows), pull_by_hand(arrows), rtol=1e-13, atol=1e-14)
        leaves = [point.requires_grad_() for point in points]
        slopes = torch.autograd.grad(step(*leaves), leaves, arrows)
        torch.testing.assert_close(slopes, pull_by_hand(arrows), rtol=1e-13, atol=1e-14)
        points = tuple(point.detach() for point in points)
        ahead = some(points)
        tangents = [torch.func.jvp(f, points, ahead)[1] for f in (step, hand)]
        torch.testing.assert_close(*tangents, rtol=1e-13, atol=1e-14)


def test_the_points_lie_on_both_sides_of_the_bounds():
    """The negative control: without the clamp the derivatives would be others."""
    x = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    held = (x < BOUNDS[0]) | (x > BOUNDS[1])
    assert 2 < held.sum() < 11


def test_at_a_bound_the_derivative_is_that_of_torch():
    x = torch.zeros(1, 3, dtype=F64)
    f = torch.tensor([[-0.4, 0.5, 0.6]], dtype=F64, requires_grad=True)
    ops.weighted_step(x, (f,), (1.0, 2.0), clamp=BOUNDS).sum().backward()
    assert f.grad.tolist() == [[2.0, 2.0, 0.0]]
