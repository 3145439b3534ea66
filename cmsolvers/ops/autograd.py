"""Derivatives of the weighted step: first and second order in reverse, and forward mode.

The step is affine in x and in its inputs, so each gradient is a weighted step of the incoming
gradients, on the same kernel; noise and weights (see step.py) are constants. A clamp needs a mask.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from cmsolvers.ops.reference import NONE, PAIR, SCALED, X0
from cmsolvers.ops.registration import library, step_one, step_two
from cmsolvers.ops.rules import WEIGHTS, Weight, canonical, split

CONSTANT_WEIGHTS = (
    "weights must not require a gradient or carry a tangent: they are constants here; detach them"
)


class _Spec(NamedTuple):
    """What is no tensor; `places` says which arguments are."""

    numbers: tuple[float, ...]
    places: tuple[int, ...]
    rule: int
    noise: tuple[int, ...]
    clamp: tuple[float, ...]
    second: int
    second_dtype: torch.dtype | None


class _Context(Protocol):
    """What autograd keeps between the step and its derivatives."""

    spec: _Spec
    count: int
    dtype: torch.dtype
    dtypes: list[torch.dtype]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    @property
    def needs_input_grad(self) -> tuple[bool, ...]: ...
    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def save_for_forward(self, *tensors: Tensor) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


_Outputs: TypeAlias = tuple[Tensor, Tensor | None]


def _call(
    spec: _Spec,
    x: Tensor,
    inputs: Sequence[Tensor],
    given: Sequence[Tensor],
    key: Tensor | None,
) -> _Outputs:
    arguments = (list(spec.numbers), list(given), list(spec.places), spec.rule)
    common = (x, list(inputs), *arguments, list(spec.noise), key, list(spec.clamp))
    if spec.second == NONE:
        return step_one(*common), None
    return step_two(*common, spec.second, spec.second_dtype)


def _combine(terms: Sequence[tuple[Tensor | None, Weight]]) -> Tensor | None:
    """Sum of w t over the terms that are there, as one weighted step; differentiable.

    It has the widest of their dtypes: the gradient of a second output may exceed the state's range.
    """
    present = [(t, w) for t, w in terms if t is not None]
    if not present:
        return None
    dtype = functools.reduce(torch.promote_types, (t.dtype for t, _ in present))
    first, *rest = [t.to(dtype) for t, _ in present]
    arguments = split([*(w for _, w in present), *[0.0] * 5])
    return step_one(first, rest, *arguments, WEIGHTS, [], None, [])


class _Rule:
    """Inputs: spec, x, key, then the step's inputs and the tensors among its arguments.

    Outputs: x' and the second (or None).
    """

    @staticmethod
    def forward(
        ctx: _Context, spec: _Spec, x: Tensor, key: Tensor | None, *rest: Tensor
    ) -> _Outputs:
        count = len(rest) - len(spec.places)
        inputs, given = rest[:count], rest[count:]
        ctx.spec = spec
        ctx.count = count
        ctx.dtype = x.dtype
        ctx.dtypes = [m.dtype for m in inputs]
        kept = (*given, x, inputs[0]) if spec.clamp else given
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            return _call(spec, x, inputs, given, key)

    # Activation checkpointing lets `saved_tensors` be read once in a derivative: hence `saved`.

    @staticmethod
    def _weights(ctx: _Context, saved: Sequence[Tensor]) -> list[Weight]:
        """The canonical weights, made in plain torch where arguments are tensors."""
        spec = ctx.spec
        given = saved[: len(spec.places)]
        return canonical(spec.numbers, given, spec.places, spec.rule, ctx.count)

    @staticmethod
    def _inside(ctx: _Context, w: Sequence[Weight], saved: Sequence[Tensor]) -> Tensor:
        """1 where the clamp lets x0 through (bounds too, as in torch.clamp), else 0."""
        x, f = saved[-2:]
        n = ctx.count
        x0 = _combine(((x.detach(), w[n + 2]), (f.detach(), w[n + 3])))
        assert x0 is not None
        low, high = ctx.spec.clamp
        return ((x0 >= low) & (x0 <= high)).to(ctx.dtype)

    @staticmethod
    def backward(
        ctx: _Context, grad: Tensor | None, grad_second: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        spec, n, saved = ctx.spec, ctx.count, ctx.saved_tensors
        w = _Rule._weights(ctx, saved)
        if grad_second is not None:
            grad_second = grad_second.to(torch.promote_types(ctx.dtype, grad_second.dtype))
        through = NONE if spec.second == NONE else spec.second
        scale: Weight = w[n + 4] if through == SCALED else 0.0
        uses_x0 = bool(spec.clamp) or through == X0

        def both(weight: Weight, second_weight: Weight) -> Tensor | None:
            second = grad_second if through != NONE else None
            return _combine(((grad, weight), (second, second_weight)))

        grads: list[Tensor | None] = []
        if not uses_x0:
            second_x = scale * w[0] if through == SCALED else (w[n + 4] if through == PAIR else 0.0)
            grads.append(both(w[0], second_x) if ctx.needs_input_grad[1] else None)
            for k in range(n):
                needed = ctx.needs_input_grad[3 + k]
                grads.append(both(w[k + 1], scale * w[k + 1]) if needed else None)
        else:
            direct = {X0: 0.0, SCALED: scale * w[0], PAIR: w[n + 4], NONE: 0.0}[through]
            reach = {X0: 1.0, SCALED: scale * w[1], PAIR: 0.0, NONE: 0.0}[through]
            grad_x0 = both(w[1], reach)
            if grad_x0 is not None and spec.clamp:
                grad_x0 = grad_x0 * _Rule._inside(ctx, w, saved)
            second = grad_second if through != NONE else None
            terms = ((grad, w[0]), (second, direct), (grad_x0, w[n + 2]))
            grads.append(_combine(terms) if ctx.needs_input_grad[1] else None)
            grads.append(_combine(((grad_x0, w[n + 3]),)) if ctx.needs_input_grad[3] else None)
            for k in range(1, n):
                grads.append(
                    both(w[k + 1], scale * w[k + 1]) if ctx.needs_input_grad[3 + k] else None
                )
        dtypes = (ctx.dtype, *ctx.dtypes)
        cast = [g if g is None else g.to(dtype) for g, dtype in zip(grads, dtypes, strict=True)]
        return (None, cast[0], None, *cast[1:], *[None] * len(spec.places))

    @staticmethod
    def jvp(
        ctx: _Context,
        _spec: None,
        x: Tensor | None,
        _key: None,
        *rest: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        spec, saved = ctx.spec, ctx.saved_tensors
        inputs, tangents_of_weights = rest[: ctx.count], rest[ctx.count :]
        if any(t is not None for t in tangents_of_weights):
            raise ValueError(CONSTANT_WEIGHTS)
        given = next(t for t in (x, *inputs) if t is not None)
        if x is None:
            x = torch.zeros_like(given, dtype=ctx.dtype)
        tangents = [
            torch.zeros_like(x, dtype=dtype) if t is None else t
            for t, dtype in zip(inputs, ctx.dtypes, strict=True)
        ]
        quiet = spec._replace(noise=(), clamp=())
        if spec.clamp:
            n = ctx.count
            w = _Rule._weights(ctx, saved)
            x0 = _combine(((x, w[n + 2]), (tangents[0], w[n + 3])))
            assert x0 is not None
            tangents[0] = x0 * _Rule._inside(ctx, w, saved)
            if spec.second == X0:
                first = _combine(((x, w[0]), *((t, w[k + 1]) for k, t in enumerate(tangents))))
                return first, tangents[0].to(spec.second_dtype)
            tangents = [t.to(x.dtype) for t in tangents]
        return _call(quiet, x, tangents, saved[: len(spec.places)], None)


class _Step(_Rule, torch.autograd.Function):
    """The rule where no torch.func transform is active."""


class _StepInTransform(_Rule, torch.autograd.function._SingleLevelFunction):
    """The rule at one level of torch.func transforms; the dispatcher has unwrapped those above."""

    @staticmethod
    def forward(
        ctx: _Context, spec: _Spec, x: Tensor, key: Tensor | None, *rest: Tensor
    ) -> _Outputs:
        # The levels below differentiate too, and autograd.Function has just switched that off.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return _Rule.forward(ctx, spec, x, key, *rest)


def _apply(
    spec: _Spec,
    x: Tensor,
    inputs: Sequence[Tensor],
    given: Sequence[Tensor],
    key: Tensor | None,
) -> _Outputs:
    grad = torch.is_grad_enabled()
    if grad and any(t.requires_grad for t in given):
        raise ValueError(CONSTANT_WEIGHTS)
    reverse = grad and any(t.requires_grad for t in (x, *inputs))
    if not reverse and forward_ad._current_level < 0:
        with torch._C._AutoDispatchBelowAutograd():
            return _call(spec, x, inputs, given, key)
    if not torch._C._are_functorch_transforms_active():
        done: _Outputs = _Step.apply(spec, x, key, *inputs, *given)  # type: ignore[no-untyped-call]
    else:
        with enable_single_level_autograd_function():
            done = _StepInTransform.apply(spec, x, key, *inputs, *given)  # type: ignore[attr-defined]
    return done


def _autograd_one(
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
) -> Tensor:
    two = _autograd_two(x, inputs, numbers, tensors, places, rule, noise, key, clamp, NONE, None)
    return two[0]


def _autograd_two(
    x: Tensor,
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    tensors: Sequence[Tensor],
    places: Sequence[int],
    rule: int,
    noise: Sequence[int],
    key: Tensor | None,
    clamp: Sequence[float],
    second: int,
    second_dtype: torch.dtype | None,
) -> _Outputs:
    parts = (tuple(numbers), tuple(places), rule, tuple(noise), tuple(clamp))
    return _apply(_Spec(*parts, second, second_dtype), x, inputs, tensors, key)


library.impl("weighted_step", _autograd_one, "Autograd")
library.impl("weighted_step_two", _autograd_two, "Autograd")
