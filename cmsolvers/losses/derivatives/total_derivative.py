"""Total derivatives d/dt function(x_t, t, s) along a path, exact or by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.losses.derivatives import finite_difference, forward_mode

Tangent: TypeAlias = Tensor | float | None
Bound: TypeAlias = Tensor | float | None
Bounds: TypeAlias = tuple[Bound, Bound] | None
Method: TypeAlias = Literal["jvp", "finite_difference"]

METHODS = ("jvp", "finite_difference")


@dataclass(frozen=True, slots=True)
class Derivative:
    """A function's value and its derivative along given tangents.

    Attributes:
        value: the function at the primals, [B, ...].
        derivative: the directional derivative, the shape of `value`; the dtype of `value` too, with
            "finite_difference" at least float32.
        error: an estimate of the derivative's error relative to its norm, float64 [B], with
            "finite_difference"; None where the derivative is exact.
    """

    value: Tensor
    derivative: Tensor
    error: Tensor | None = None


def total_derivative(
    function: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tangent],
    *,
    method: Method = "jvp",
    step: float = 5e-3,
    bounds: Sequence[Bounds] | None = None,
    through: bool = False,
) -> Derivative:
    """The value of a function and its derivative d/de function(primals + e tangents) at e = 0.

    With primals (x_t, t, s) and tangents (dx/dt, 1, 0) this is the total derivative in t along an
    ODE that continuous-time consistency losses and average velocities need.

    - "jvp" is exact: one pass in forward mode. Inside it scaled_dot_product_attention runs its math
      kernel, compiled modules run eagerly, activation checkpoints are plain calls and layer, group
      and batch norms are written out: fused attention, inductor's code, `use_reentrant=True` and
      what checkpoints compute again have no forward mode. Values may differ from those of another
      pass by rounding.
    - "finite_difference" takes five passes: central differences at `step` and `step` / 2 without
      their errors of second order (Richardson), and one-sided ones of the same order where the
      central ones would leave `bounds`. All passes draw the same random numbers, and each moves
      running statistics as a pass does (`same_statistics` keeps them). With bounds each sample
      moves by a step of its own: of a network in which samples see each other (batch norm in
      training mode) the derivative is wrong then.

    With many processes: FSDP's modules, of both kinds, are called as they are. Without `through`,
    call the module inside of DistributedDataParallel (`inner`) here and the wrapper in the pass
    with gradient; with `through`, call the wrapper here too, or no gradient is averaged.

    Without `through` no gradient follows and weights that autocast casts here are not kept: a cast
    made without gradient would take the gradient of a later pass.

    Args:
        function: `function(*primals) -> Tensor [B, ...]`. Levels reach it in their own dtype, and
            it casts what it makes of them (c_noise) itself; in half precision t +- step is t.
        primals: floating tensors [B, ...], such as x [B, ...] and float64 levels [B].
        tangents: one per primal: a tensor or number that broadcasts to it; None is 0.
        method: "jvp" or "finite_difference".
        step: of the finite difference, in units of the tangents' parameter.
        bounds: one per primal: (low, high), each a number, a tensor [B] or None, that a finite
            difference keeps to; (s, 1.0) holds t between s and 1. A sample that has no room at all
            gets the derivative 0 and the error inf.
        through: let gradients follow, through the derivative too (reverse over forward mode).

    Returns:
        value, derivative and, for "finite_difference", the error per sample.

    Raises:
        TypeError: primals are not floating tensors, or the function returns no floating tensor.
        ValueError: numbers or shapes of primals, tangents and bounds do not fit, or the method is
            unknown.
        NotImplementedError: an operation inside has no forward mode; the text names its module.

    Example:
        >>> u = lambda x, t, s: net(x, t.float(), s.float())
        >>> found = total_derivative(u, (x, t, s), (v, 1.0, None))
        >>> target = v - (t - s).view(-1, 1) * found.derivative
    """
    if method not in METHODS:
        raise ValueError(f'derivative must be "jvp" or "finite_difference"; got {method!r}')
    check.function("function", function)
    points = [_primal(i, primal) for i, primal in enumerate(primals)]
    if len(tangents) != len(points):
        raise ValueError(
            f"tangents must be one per primal, {len(points)}; got {len(tangents)} of them"
        )
    directions = [_tangent(i, t, p) for i, (t, p) in enumerate(zip(tangents, points, strict=True))]
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return _outside_inference(function, points, directions, method, step, bounds)
    with torch.set_grad_enabled(through and torch.is_grad_enabled()):
        if not through:
            points = [point.detach() for point in points]
            directions = [None if d is None else d.detach() for d in directions]
        if method == "jvp":
            value, derivative = forward_mode.jvp(function, points, directions, through=through)
            return Derivative(value, derivative)
        return Derivative(
            *finite_difference.richardson(
                function, points, directions, check.positive("step", step), bounds, through=through
            )
        )


def _outside_inference(
    function: Callable[..., Tensor],
    points: Sequence[Tensor],
    directions: Sequence[Tensor | None],
    method: Method,
    step: float,
    bounds: Sequence[Bounds] | None,
) -> Derivative:
    """The same without gradient and outside of inference mode, in which tangents are lost."""
    with torch.inference_mode(False), torch.no_grad():
        points = [point.clone() for point in points]
        moving = [None if d is None else d.clone() for d in directions]
        return total_derivative(function, points, moving, method=method, step=step, bounds=bounds)


def _primal(i: int, primal: object) -> Tensor:
    """A floating tensor with a batch dimension."""
    if isinstance(primal, Tensor) and not primal.is_floating_point():
        raise TypeError(
            f"primals[{i}] must be floating, a derivative in integers does not exist; "
            f"got {check.describe(primal)}"
        )
    return check.state(f"primals[{i}]", primal)


def _tangent(i: int, tangent: object, primal: Tensor) -> Tensor | None:
    """A tangent with its primal's shape and dtype; None where it is 0."""
    if tangent is None:
        return None
    if not isinstance(tangent, Tensor):
        number = check.finite(f"tangents[{i}]", tangent)
        return None if number == 0 else torch.full_like(primal, number, requires_grad=False)
    try:
        return tangent.to(primal).expand_as(primal)
    except RuntimeError as error:
        raise ValueError(
            f"tangents[{i}] must broadcast to its primal, shape {list(primal.shape)}; "
            f"got {check.describe(tangent)}"
        ) from error
