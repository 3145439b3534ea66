"""Combinations: sums of tensors with one weight per sample, in eager mode and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsolvers.denoisers import AverageVelocity, TrajectoryFunction
from cmsolvers.losses import Combination, ctm, lsd
from support.columns import column
from support.loss_formulas import X0, small

A, B = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
W = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def of(x: Tensor) -> Combination:
    return Combination([(x, 1.0)])


OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "c * w": (lambda a, b, w: of(a) * w, lambda a, b, w: a * column(w)),
    "w * c": (lambda a, b, w: w * of(a), lambda a, b, w: a * column(w)),
    "c / w": (lambda a, b, w: of(a) / w, lambda a, b, w: a / column(w)),
    "2 * c / 4": (lambda a, b, w: 2.0 * of(a) / 4.0, lambda a, b, w: 0.5 * a),
    "c + x": (lambda a, b, w: of(a) + b, lambda a, b, w: a + b),
    "x + c": (lambda a, b, w: b + of(a), lambda a, b, w: a + b),
    "c - x": (lambda a, b, w: of(a) - b, lambda a, b, w: a - b),
    "x - c": (lambda a, b, w: b - of(a), lambda a, b, w: b - a),
    "-c + c w": (lambda a, b, w: -of(a) + of(b) * w, lambda a, b, w: b * column(w) - a),
    "c - c": (lambda a, b, w: of(a) - of(b), lambda a, b, w: a - b),
}


@pytest.mark.parametrize(("made", "right"), OPERATORS.values(), ids=OPERATORS)
def test_operators(made: Callable[..., Any], right: Callable[..., Tensor]) -> None:
    torch.testing.assert_close(made(A, B, W).tensor(), right(A, B, W))


def test_operators_in_one_graph() -> None:
    def all_made(a: Tensor, b: Tensor, w: Tensor) -> list[Tensor]:
        return [made(a, b, w).tensor() for made, _ in OPERATORS.values()]

    torch._dynamo.reset()
    found = torch.compile(all_made, backend="eager", fullgraph=True)(A, B, W)
    for got, (_, right) in zip(found, OPERATORS.values(), strict=True):
        torch.testing.assert_close(got, right(A, B, W))


@pytest.mark.parametrize("wrong", [lambda: W / of(A), lambda: of(A) @ B, lambda: torch.sin(of(A))])  # type: ignore[call-overload, operator]
def test_what_a_sum_cannot_do(wrong: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        wrong()


def test_terms_of_one_tensor_are_joined_without_its_gradient_too() -> None:
    """x / h - x / h leaves nothing: not two terms whose rounding is that of x / h."""
    total = of(A) / 1e-9 - (of(A) / 1e-9).detach()
    assert len(total.terms) == 1 and total.terms[0][1] == 0.0
    grown = A.clone().requires_grad_()
    assert not (of(grown) * W).detach().terms[0][0].requires_grad


@pytest.mark.parametrize("recipe", [lsd, ctm])
def test_losses_compile_in_one_graph(recipe: Any) -> None:
    torch._dynamo.reset()
    net = small().float().eval()
    model = TrajectoryFunction(net) if recipe is ctm else AverageVelocity(net)

    def value(x0: Tensor) -> Tensor:
        found: Tensor = recipe(model, x0, key=3, step=2).loss
        return found

    x0 = X0.float()
    compiled = torch.compile(value, backend="eager", fullgraph=True)
    grads = [torch.autograd.grad(f(x0), net.last.bias)[0] for f in (compiled, value)]
    torch.testing.assert_close(*grads)


def test_combinations_take_tensors_on_either_side():
    x, y, w = X0, X0.flip(0) + 0.3, torch.linspace(0.5, 2.0, len(X0), dtype=X0.dtype)
    c, spread = of(x), column(w)
    cases = {
        "y - c": (y - c, y - x),
        "c - y": (c - y, x - y),
        "y + c": (y + c, y + x),
        "w * c": (w * c, spread * x),
        "c * w": (c * w, spread * x),
        "c / w": (c / w, x / spread),
        "joined": (w * c - c + y, spread * x - x + y),
    }
    for name, (found, expected) in cases.items():
        torch.testing.assert_close(found.tensor(), expected, rtol=1e-12, atol=1e-14, msg=name)
    assert len((w * c - c).terms) == 1
    with pytest.raises(TypeError):
        w / c
    with pytest.raises(TypeError):
        torch.exp(c)
