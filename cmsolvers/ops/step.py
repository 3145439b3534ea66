"""The weighted step, which every sampler step and every noising is (DESIGN section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmsolvers.checks import PRECISION, as_float
from cmsolvers.ops import autograd as _autograd  # noqa: F401  (registers the derivatives)
from cmsolvers.ops import reference
from cmsolvers.ops.arguments import (
    check_outputs,
    check_rule,
    check_state,
    check_weight,
    second_dtype_for,
)
from cmsolvers.ops.binary import C
from cmsolvers.ops.keys import Key, SeedLike, place, resolve
from cmsolvers.ops.registration import step_one, step_out, step_two
from cmsolvers.ops.rules import EULER_MARUYAMA, FOLDED, WEIGHTS, Weight, folded, split

Second: TypeAlias = Literal["x0"] | float | Tensor | tuple[Literal["pair"], Weight, Weight]

MAX_INPUTS = 4
MASK64 = (1 << 64) - 1

tracing = torch.compiler.is_dynamo_compiling


class FastStep(Protocol):
    """The type of FAST: one output, the second alone, or both."""

    @overload
    def __call__(
        self,
        x: Tensor,
        inputs: tuple[Tensor, ...],
        arguments: object,
        w_z: Weight,
        seed: int | Tensor | None,
        stream: int,
        draw: int,
        offset: int,
        out: Tensor | None,
        rule: int = ...,
        /,
    ) -> Tensor | None: ...

    @overload
    def __call__(
        self,
        x: Tensor,
        inputs: tuple[Tensor, ...],
        arguments: object,
        w_z: Weight,
        seed: int | Tensor | None,
        stream: int,
        draw: int,
        offset: int,
        out: Literal[False],
        rule: int,
        second: object,
        second_out: Tensor | torch.dtype | None,
        /,
    ) -> Tensor | None: ...

    @overload
    def __call__(
        self,
        x: Tensor,
        inputs: tuple[Tensor, ...],
        arguments: object,
        w_z: Weight,
        seed: int | Tensor | None,
        stream: int,
        draw: int,
        offset: int,
        out: Tensor | bool | None,
        rule: int,
        second: object,
        second_out: Tensor | torch.dtype | None = ...,
        basis: object = ...,
        clamp: object = ...,
        /,
    ) -> Tensor | tuple[Tensor, Tensor] | None: ...


FAST: FastStep | None = None if C is None else C.fast_step
"""fast_step(x, inputs, arguments, w_z, seed, stream, draw, offset, out, rule=WEIGHTS, second=None,
second_out=None, basis=None, clamp=None), positional only: the plain case (everything valid and
contiguous, no derivative, no transform) straight into the kernel.

- inputs: a tuple. arguments: a tuple of numbers and tensors, as `rule` takes them; for the rule
  WEIGHTS (w_x, w_1, ..., w_n), or one tensor [B, 1 + n].
- seed: an int, or the table of a Key (`offset` is not read then). Not read where w_z is 0.
- out: a tensor, None (a new one is made), or False: the first output is not wanted.
- second: None; s (a number or a tensor [B]): s x'; True: D; (p, q): p x + q z. With another rule
  than WEIGHTS only None, and for EDM_INPUT 1.0: x' in the dtype of the second output.
- second_out: a tensor, a dtype (a new tensor of it is made), or None (one of x's dtype is).
- basis, clamp: `x0` and `clamp` of weighted_step.

It returns the output, the pair where there are two, or None where the case is not plain: nothing
was written then.
"""

_REFUSED = ""
"""A second output that FAST does not know: the general way says what is wrong with it."""


def keyed(seed: SeedLike, offset: int) -> tuple[int | Tensor | None, int]:
    """A seed and an offset as FAST takes them; a seed that FAST does not take becomes None."""
    if type(seed) is int:
        return seed, offset
    if type(seed) is Key and offset == 0:
        return (seed.seed & MASK64, seed.offset) if seed.table is None else (seed.table, 0)
    return None, 0


def usual_out(out: object, dtype: torch.dtype | None) -> bool:
    """Whether the one output is none, or a tensor of the dtype; the general way refuses others."""
    return out is None or (isinstance(out, Tensor) and out.dtype == dtype)


def usual_outputs(x: object, out: object, second_out: object, dtype: torch.dtype | None) -> bool:
    """Whether the outputs are none that FAST takes and users may not give: False, other dtypes."""
    if second_out is None:
        return type(out) is not bool
    wanted = getattr(x, "dtype", None) if dtype is None else dtype
    return type(out) is not bool and isinstance(second_out, Tensor) and second_out.dtype == wanted


def _fast_second(second: object) -> object:
    """`second` of weighted_step as FAST takes it."""
    if isinstance(second, str):
        return second == "x0" or _REFUSED
    if isinstance(second, tuple):
        return second[1:] if second[:1] == ("pair",) else _REFUSED
    return _REFUSED if isinstance(second, bool) else second


@overload
def weighted_step(
    x: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Weight] | Tensor,
    *,
    w_z: Weight = 0.0,
    seed: SeedLike = None,
    stream: int = 1,
    draw: int = 0,
    offset: int = 0,
    x0: tuple[Weight, Weight] | None = None,
    clamp: tuple[float, float] | None = None,
    second: None = None,
    second_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    second_out: None = None,
) -> Tensor: ...


@overload
def weighted_step(
    x: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Weight] | Tensor,
    *,
    w_z: Weight = 0.0,
    seed: SeedLike = None,
    stream: int = 1,
    draw: int = 0,
    offset: int = 0,
    x0: tuple[Weight, Weight] | None = None,
    clamp: tuple[float, float] | None = None,
    second: Second,
    second_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    second_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...


def weighted_step(
    x: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Weight] | Tensor,
    *,
    w_z: Weight = 0.0,
    seed: SeedLike = None,
    stream: int = 1,
    draw: int = 0,
    offset: int = 0,
    x0: tuple[Weight, Weight] | None = None,
    clamp: tuple[float, float] | None = None,
    second: Second | None = None,
    second_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    second_out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The step x' = w_x x + sum_k w_k m_k + w_z z in one launch, z from the noise contract.

    Terms with a host weight of 0.0 are dropped: their input is not read, so 0 * inf cannot make
    NaN.

    Args:
        x: the state, [B, ...], float64, float32, float16 or bfloat16. Any dense layout is kept.
        inputs: up to four tensors m_k of x's shape and device, all of one dtype: x's, or one of
            lower precision.
        weights: (w_x, w_1, ..., w_n): floats or float tensors [B]; or one float tensor
            [B, 1 + n], a row per sample. Tensors are read by the kernel, in place.
        w_z: weight of the noise, a float or a tensor [B].
        seed: see `noise.key`; read only where w_z is not 0.
        stream: 0..255, see `noise`.
        draw: 0..2^32-1, which draw of the stream this is (samplers: the step's index).
        offset: sample id of the first row.
        x0: (c_skip, c_out), floats or [B]: inputs[0] is raw network output F and
            D = c_skip x + c_out F replaces it.
        clamp: (low, high): D (inputs[0] where x0 is not given) is clamped before it is used.
        second: a second output. "x0": D; a number or [B] s: s x', such as c_in(sigma') x';
            ("pair", p, q): p x + q z with the same z.
        second_dtype: dtype of the second output; x's by default.
        out: where to write, in x's layout; may be x or one of the inputs, exactly.
        second_out: where to write the second output, in x's layout.

    Returns:
        x' with the dtype, layout and device of x; with `second`, the pair (x', second).

    Raises:
        TypeError: something that is not a tensor, is not floating, or a dtype the step does not
            take.
        ValueError: shapes, devices, sizes of weights, ranges or overlapping memory; the text names
            the argument.
    """
    inputs = tuple(inputs)
    if FAST is not None and not tracing() and usual_outputs(x, out, second_out, second_dtype):
        key, first = keyed(seed, offset)
        done = FAST(
            x,
            inputs,
            tuple(weights) if type(weights) is list else weights,
            w_z,
            key,
            stream,
            draw,
            first,
            out,
            WEIGHTS,
            None if second is None else _fast_second(second),
            second_dtype if second_out is None else second_out,
            x0,
            clamp,
        )
        if done is not None:
            return done
    check_state(x, inputs)
    if len(inputs) > MAX_INPUTS:
        raise ValueError(f"inputs must hold at most {MAX_INPUTS} tensors; got {len(inputs)}")
    columns = _columns(weights, len(inputs))
    if (x0 is not None or clamp is not None or second == "x0") and not inputs:
        raise ValueError("inputs must not be empty where x0 or clamp is given")
    if clamp is not None and (len(tuple(clamp)) != 2 or not clamp[0] <= clamp[1]):
        raise ValueError(f"clamp must be (low, high) with low <= high; got {clamp}")
    c_skip, c_out = (0.0, 1.0) if x0 is None else x0
    kind, s0, s1 = _second(second)
    columns += [w_z, c_skip, c_out, s0, s1]
    names = ["weights"] * (len(inputs) + 1) + ["w_z", "x0", "x0", "second", "second"]
    for name, value in zip(names, columns, strict=True):
        check_weight(name, value, x)
    rule = WEIGHTS
    if clamp is None and kind != reference.X0 and x0 is not None:
        if any(isinstance(w, Tensor) for w in (columns[0], columns[1], c_skip, c_out)):
            rule = FOLDED
        else:
            columns[:2] = folded(columns[0], columns[1], c_skip, c_out)
            columns[-4:-2] = [0.0, 1.0]
    noisy = any(
        isinstance(w, Tensor) or w != 0.0 for w in ((w_z, s1) if kind == reference.PAIR else (w_z,))
    )
    return _run(
        x,
        inputs,
        rule,
        columns,
        noise=_noise(x, seed, stream, draw, offset) if noisy else ([], None),
        clamp=clamp,
        kind=kind,
        second_dtype=second_dtype,
        out=out,
        second_out=second_out,
    )


def step_by_rule(
    x: Tensor,
    inputs: tuple[Tensor, ...],
    rule: int,
    arguments: tuple[Weight, ...],
    *,
    seed: SeedLike = None,
    stream: int = 0,
    draw: int = 0,
    offset: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """A step whose weights the kernel makes of other arguments, such as levels.

    Args:
        x: as in `weighted_step`.
        inputs: as many as the rule goes with.
        rule: of rules.py; EULER_MARUYAMA draws noise, unless g or dt is the number 0.
        arguments: the rule's, in their order.
        seed: as in `weighted_step`, and so are the others.
        stream: 0..255.
        draw: 0..2^32-1.
        offset: sample id of the first row.
        out: where to write.

    Returns:
        x'.

    Raises:
        TypeError, ValueError: as `weighted_step`; numbers out of range.
    """
    if FAST is not None and not tracing():
        key, first = keyed(seed, offset) if rule == EULER_MARUYAMA else (None, 0)
        done = FAST(x, inputs, arguments, 0.0, key, stream, draw, first, out, rule)
        if done is not None:
            return done
    check_state(x, inputs)
    checked = check_rule(rule, arguments, x)
    noisy = rule == EULER_MARUYAMA and all(isinstance(w, Tensor) or w != 0.0 for w in checked)
    noise = _noise(x, seed, stream, draw, offset) if noisy else ([], None)
    result = _run(x, inputs, rule, checked, noise=noise, out=out)
    assert isinstance(result, Tensor)
    return result


def second_alone(
    x: Tensor, rule: int, arguments: Sequence[Weight], dtype: torch.dtype, out: Tensor | None
) -> Tensor:
    """s0 x in another dtype, on checked arguments; no first output is made unless x is followed."""
    if _followed(x):
        kind = reference.PAIR
        return _run(x, (), rule, arguments, kind=kind, second_dtype=dtype, second_out=out)[1]
    dtype = second_dtype_for(dtype, x, True)
    if out is None:
        out = torch.empty_like(x, dtype=dtype)
    else:
        check_outputs(x, (), None, out, dtype, True)
    step_out(None, out, x, [], *_split(arguments, x), rule, [], None, [], reference.PAIR)
    return out


def _run(
    x: Tensor,
    inputs: Sequence[Tensor],
    rule: int,
    arguments: Sequence[Weight],
    *,
    noise: tuple[list[int], Tensor | None] = ([], None),
    clamp: tuple[float, float] | None = None,
    kind: int = reference.NONE,
    second_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    second_out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Call the operator, on checked arguments; outputs are checked here."""
    limits = [] if clamp is None else [as_float("clamp", limit) for limit in clamp]
    common = (x, list(inputs), *_split(arguments, x), rule, *noise, limits)
    dtype = second_dtype_for(second_dtype, x, kind != reference.NONE)
    if out is None and second_out is None:
        if kind == reference.NONE:
            return step_one(*common)
        return step_two(*common, kind, dtype)
    check_outputs(x, inputs, out, second_out, dtype, kind != reference.NONE)
    out = torch.empty_like(x) if out is None else out
    if kind != reference.NONE and second_out is None:
        second_out = torch.empty_like(x, dtype=dtype)
    step_out(out, second_out, *common, kind)
    return out if second_out is None else (out, second_out)


def _noise(
    x: Tensor, seed: SeedLike, stream: int, draw: int, offset: int
) -> tuple[list[int], Tensor | None]:
    """(seed, offset, stream, draw) and the table of keys, as the operators take them."""
    key = resolve(seed, x.shape[0] if x.dim() else 1, offset=offset, device=x.device)
    return place(key, stream, draw), key.table


def _followed(x: Tensor) -> bool:
    """Whether a derivative, a transform or a trace is to see what is done to x."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or (x.requires_grad and torch.is_grad_enabled())
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
    )


def _columns(weights: Sequence[Weight] | Tensor, count: int) -> list[Weight]:
    if isinstance(weights, Tensor):
        if weights.dim() != 2 or weights.shape[1] != count + 1:
            raise ValueError(f"weights must have shape [B, {count + 1}]; got {list(weights.shape)}")
        return list(weights.unbind(1))
    if len(weights) != count + 1:
        raise ValueError(
            f"weights must hold {count + 1} numbers (w_x and one per input); got {len(weights)}"
        )
    return list(weights)


def _second(second: Second | None) -> tuple[int, Weight, Weight]:
    if second is None:
        return reference.NONE, 0.0, 0.0
    if isinstance(second, str):
        if second != "x0":
            raise ValueError(
                f'second must be "x0", a number, a tensor or ("pair", p, q); got {second!r}'
            )
        return reference.X0, 0.0, 0.0
    if isinstance(second, tuple):
        if len(tuple(second)) != 3 or second[0] != "pair":
            raise ValueError(f'second must be ("pair", p, q) where it is a tuple; got {second!r}')
        return reference.PAIR, second[1], second[2]
    return reference.SCALED, second, 0.0


def _split(arguments: Sequence[Weight], x: Tensor) -> tuple[list[float], list[Tensor], list[int]]:
    """Arguments as the operators take them, the tensors on x's device and of a dtype they read."""
    numbers, tensors, places = split(arguments)
    for i, w in enumerate(tensors):
        if w.device != x.device or w.dtype not in PRECISION:
            tensors[i] = w.to(x.device, w.dtype if w.dtype in PRECISION else torch.float64)
    return numbers, tensors, places
