"""Sums of tensors with one weight per sample each: what a loss compares, before it is computed.

A residual such as f(x, t) - f^-(y, s) is linear in the states and in the outputs of the networks.
Written as a `Combination` it is never made: one fused pass reduces it, and its gradient is written
for the outputs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmsolvers import ops

Weight: TypeAlias = "float | Tensor"
"""A number, or a float64 tensor [B]."""

_MOST = 6  # tensors of one fused pass
_PLUS = (Tensor.add, Tensor.__add__, Tensor.__radd__)
_MINUS = (Tensor.sub, Tensor.__sub__, Tensor.__rsub__)
_TIMES = (Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
_OVER = (Tensor.div, Tensor.__truediv__, Tensor.__rtruediv__, Tensor.__rdiv__)
_REVERSED = (Tensor.__rsub__, Tensor.__rtruediv__, Tensor.__rdiv__)
_OPERATORS = (_PLUS, _MINUS, _TIMES, _OVER)


def moves(t: Tensor) -> bool:
    """Whether derivatives may go through a tensor; of forward mode `requires_grad` says nothing."""
    if t.requires_grad or torch.compiler.is_compiling():
        return t.requires_grad
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


class Combination:
    """sum_k weights[k] tensors[k], all of one shape [B, ...]; supports + - * / with weights.

    Args:
        terms: (tensor, weight) pairs; those whose weight is the number 0 are left out.
    """

    __slots__ = ("_terms",)

    def __init__(self, terms: Sequence[tuple[Tensor, Weight]]) -> None:
        some = [term for term in terms if not (type(term[1]) is float and term[1] == 0.0)]
        self._terms = tuple(some or terms[:1])

    @property
    def terms(self) -> tuple[tuple[Tensor, Weight], ...]:
        """(tensor, weight) pairs."""
        return self._terms

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """+ - * / with a tensor, which torch.compile takes for operations of torch."""
        if len(args) != 2 or not any(func in few for few in _OPERATORS):
            return NotImplemented
        first, second = args
        if func in _REVERSED:
            first, second = second, first
        if func in _PLUS:
            return _of(first).__add__(second)
        if func in _MINUS:
            return _of(first).__sub__(second)
        if func in _OVER:
            return first.__truediv__(second) if isinstance(first, Combination) else NotImplemented
        if isinstance(first, Combination):
            return first.__mul__(second)
        return second.__mul__(first)

    def __add__(self, other: Combination | Tensor) -> Combination:
        joined = list(self.terms)
        for tensor, weight in _of(other).terms:
            for k, (mine, own) in enumerate(joined):
                if mine is tensor:
                    joined[k] = (mine, own + weight)
                    break
            else:
                joined.append((tensor, weight))
        return Combination(joined)

    __radd__ = __add__

    def __sub__(self, other: Combination | Tensor) -> Combination:
        return self.__add__(_of(other).__mul__(-1.0))

    def __rsub__(self, other: Combination | Tensor) -> Combination:
        return self.__mul__(-1.0).__add__(other)

    def __neg__(self) -> Combination:
        return self * -1.0

    def __mul__(self, factor: Weight) -> Combination:
        return Combination([(tensor, weight * factor) for tensor, weight in self.terms])

    __rmul__ = __mul__

    def __truediv__(self, divisor: Weight) -> Combination:
        return Combination([(tensor, weight / divisor) for tensor, weight in self.terms])

    def detach(self) -> Combination:
        """The same without gradient; a tensor without one stays itself, and so one term."""
        if not any(moves(t) for t, _ in self.terms):
            return self
        return Combination([(t.detach() if moves(t) else t, weight) for t, weight in self.terms])

    def tensor(self, dtype: torch.dtype | None = None) -> Tensor:
        """The sum itself, [B, ...]; differentiable in its tensors.

        It is made in the widest dtype of these, and returned in `dtype`; None is that one.
        """
        tensors = sorted(self.terms, key=lambda term: -torch.finfo(term[0].dtype).bits)
        (total, scale), rest = tensors[0], tensors[1:]
        total = total.to(_widest([tensor for tensor, _ in tensors]))
        while True:
            some, rest = rest[:4], rest[4:]
            inputs = tuple(tensor.to(total.dtype) for tensor, _ in some)
            total = ops.weighted_step(total, inputs, (scale, *(w for _, w in some)))
            if not rest:
                return total if dtype is None else total.to(dtype)
            scale = 1.0

    def square_sum(self) -> Tensor:
        """Sum of squares over the elements of each sample, float64 [B]."""
        return self._sum("square", 0.0)

    def abs_sum(self) -> Tensor:
        """Sum of absolute values over the elements of each sample, float64 [B]."""
        return self._sum("abs", 0.0)

    def huber_sum(self, c: float) -> Tensor:
        """Sum of sqrt(r^2 + c^2) - c over the elements r of each sample, float64 [B]."""
        return self._sum("huber", c)

    def norm(self, c: float = 0.0) -> Tensor:
        """sqrt(|r|^2 + c^2) - c with |r| the norm of each sample, float64 [B]."""
        return self._sum("pseudo_huber", c)

    def dot(self, other: Tensor) -> Tensor:
        """Inner product with a tensor over the elements of each sample, float64 [B]."""
        total: Tensor = other.new_zeros(len(other), dtype=torch.float64)
        for tensor, weight in self.terms:
            product = (tensor * other).double()
            total = total + weight * (
                product.sum(list(range(1, other.ndim))) if other.ndim > 1 else product
            )
        return total

    @property
    def size(self) -> int:
        """Elements per sample."""
        return math.prod(self.terms[0][0].shape[1:])

    def _sum(self, kind: Literal["square", "abs", "huber", "pseudo_huber"], c: float) -> Tensor:
        tensors, table = self._passed()
        return ops.form_distance(tensors, table, kind, c)

    def _passed(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """What one fused pass takes: K tensors, and their weights, float64 [K, B] or [K, 1]."""
        terms = self.terms if len(self.terms) <= _MOST else tuple(_shortened(self.terms))
        tensors, weights = zip(*terms, strict=True)
        return tensors, _stacked(weights, tensors[0])


def of(tensor: Tensor) -> Combination:
    """A tensor as a combination."""
    return Combination([(tensor, 1.0)])


def _of(value: Combination | Tensor) -> Combination:
    return value if isinstance(value, Combination) else of(value)


def _stacked(weights: Sequence[Weight], like: Tensor) -> Tensor:
    """Weights as float64 [K, B]."""
    # Numbers are filled in on the device: a copy from the host would be waited for.
    batch = len(like) if any(isinstance(weight, Tensor) for weight in weights) else 1
    rows = [
        weight.expand(batch)
        if isinstance(weight, Tensor)
        else like.new_full((batch,), weight, dtype=torch.float64)
        for weight in weights
    ]
    return torch.stack(rows)


def _shortened(terms: Sequence[tuple[Tensor, Weight]]) -> list[tuple[Tensor, Weight]]:
    """As many terms as one pass takes: those without gradient are summed first."""
    constant = [term for term in terms if not term[0].requires_grad]
    rest = [term for term in terms if term[0].requires_grad]
    over = len(terms) - _MOST + 1
    if len(constant) < over:
        return [(Combination(terms).tensor(), 1.0)]
    return [(Combination(constant[:over]).tensor(), 1.0), *constant[over:], *rest]


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
