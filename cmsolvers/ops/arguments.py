"""What the steps accept. Bad input is refused here, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmsolvers.checks import PRECISION, as_float, carries_tangent, differentiated, strided
from cmsolvers.ops.binary import CPU_ONLY
from cmsolvers.ops.rules import ARGUMENTS, EULER_MARUYAMA, HEUN, PF_ODE, Weight, canonical


def check_dtype(name: str, dtype: object) -> None:
    """One of the four dtypes that the kernels know."""
    if dtype not in PRECISION:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16; got {dtype}")


def check_tensor(name: str, x: Tensor) -> None:
    """Check that x is a plain floating tensor on a device that this build has kernels for."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(x).__name__}")
    strided(name, x)
    check_dtype(name, x.dtype)
    if not x.is_cpu:
        check_built_for(name, x)


def check_state(x: Tensor, inputs: Sequence[Tensor], name: str = "inputs") -> None:
    """Check that x is floating, and that inputs share its shape, device, and a dtype no wider."""
    check_tensor("x", x)
    for k, m in enumerate(inputs):
        if not isinstance(m, Tensor):
            raise TypeError(f"{name}[{k}] must be a tensor; got {type(m).__name__}")
        strided(f"{name}[{k}]", m)
        if m.shape != x.shape:
            raise ValueError(
                f"{name}[{k}] must have the shape of x, {list(x.shape)}; got {list(m.shape)}"
            )
        if m.device != x.device:
            raise ValueError(f"{name}[{k}] must be on the device of x, {x.device}; got {m.device}")
        if m.dtype != inputs[0].dtype:
            raise TypeError(
                f"{name} must share one dtype; "
                f"{name}[0] is {inputs[0].dtype}, {name}[{k}] is {m.dtype}"
            )
    if inputs:
        dtype = inputs[0].dtype
        check_dtype(f"{name}[0]", dtype)
        if dtype != x.dtype and PRECISION[dtype] >= PRECISION[x.dtype]:
            raise TypeError(
                f"{name}[0] must be {x.dtype} as x is, or of lower precision; got {dtype}"
            )


def check_built_for(name: str, x: Tensor) -> None:
    """The build has kernels for x's device. Fake tensors pass: they are never computed."""
    if CPU_ONLY and x.is_cuda and not isinstance(x, torch._subclasses.FakeTensor):
        raise RuntimeError(
            f"{name} must be on the CPU: this build of cmsolvers has no CUDA part; got {x.device}. "
            "USE_CUDA=1 pip install --no-build-isolation . builds it, or says what is missing"
        )


def check_weight(name: str, value: float | Tensor, x: Tensor) -> None:
    """A finite number, or a floating tensor with one entry per sample that needs no gradient."""
    if isinstance(value, Tensor):
        batch = x.shape[0] if x.dim() else 1
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, batch)):
            raise ValueError(
                f"{name} must be a number or have shape [{batch}], one per sample; "
                f"got {list(value.shape)}"
            )
        if not value.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating; got {value.dtype}")
        if value.requires_grad and torch.is_grad_enabled():
            followed = True
        else:  # under a transform or a compiler the operator's derivative refuses it
            followed = not _opaque() and carries_tangent(value)
        if followed:
            raise ValueError(
                f"{name} must not require a gradient or carry a tangent: weights are constants "
                "here; detach it"
            )
        if value.device != x.device and value.device.type != "cpu":
            raise ValueError(
                f"{name} must be on the device of x, {x.device}, or the CPU; got {value.device}"
            )
        return
    if torch.compiler.is_compiling() and not isinstance(value, (bool, str)):
        return  # a number may be a symbol here; the kernel takes it as it comes
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number or a tensor; got {type(value).__name__}")
    if not math.isfinite(as_float(name, value)):
        raise ValueError(f"{name} must be finite; got {value}")


def check_rows(name: str, weights: Tensor, x: Tensor, batch: int) -> None:
    """Weights of many samples: a constant float64 tensor on the device of x, its last size B or 1.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(weights).__name__}")
    if weights.dtype != torch.float64:
        raise TypeError(f"{name} must be float64; got {weights.dtype}")
    if weights.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}; got {weights.device}")
    if weights.dim() == 0 or weights.shape[-1] not in (1, batch):
        raise ValueError(
            f"{name} must have {batch} or 1 as its last size, one entry per sample; "
            f"got {list(weights.shape)}"
        )
    if differentiated(weights):
        raise ValueError(
            f"{name} must not require a gradient or carry a tangent: weights are constants here; "
            "detach it"
        )


def check_rule(rule: int, arguments: Sequence[Weight], x: Tensor) -> list[Weight]:
    """The arguments of a rule, checked by their names; numbers as floats.

    Levels in tensors are not read.
    """
    found: list[Weight] = []
    for name, value in zip(ARGUMENTS[rule], arguments, strict=True):
        check_weight(name, value, x)
        if isinstance(value, Tensor) and name in ("sigma_data", "sigma_min"):
            if value.numel() != 1:
                raise ValueError(f"{name} must be a number; got shape {list(value.shape)}")
            value = value.item()
            check_weight(name, value, x)
        if isinstance(value, Tensor):
            found.append(value)
            continue
        number = float(value)
        if rule == HEUN and name == "sigma_next" and number == 0.0:
            raise ValueError(
                "sigma_next must be positive for the corrector; got 0 (there the predictor is the "
                "step)"
            )
        divides = name == "sigma_data" or (name == "sigma" and rule in (PF_ODE, HEUN))
        if divides and not number > 0.0:
            raise ValueError(f"{name} must be positive; got {number}")
        if rule != EULER_MARUYAMA and number < 0.0:
            raise ValueError(f"{name} must not be negative; got {number}")
        found.append(number)
    if not any(isinstance(w, Tensor) for w in found) and not torch.compiler.is_compiling():
        try:
            finite = all(map(math.isfinite, canonical([*map(float, found)], [], [], rule, 1)))
        except ArithmeticError:  # a square that is 0 or overflows
            finite = False
        if not finite:
            given = ", ".join(f"{k} = {w:g}" for k, w in zip(ARGUMENTS[rule], found, strict=True))
            raise ValueError(f"weights must be finite; with {given} they are not")
    return found


def second_dtype_for(dtype: torch.dtype | None, x: Tensor, wanted: bool) -> torch.dtype:
    """The second output's dtype: x's unless one is named."""
    if dtype is None:
        return x.dtype
    if not wanted:
        raise ValueError(f"second_dtype needs second; got {dtype} with second=None")
    check_dtype("second_dtype", dtype)
    return dtype


def check_outputs(
    x: Tensor,
    inputs: Sequence[Tensor],
    out: Tensor | None,
    second_out: Tensor | None,
    second_dtype: torch.dtype,
    has_second: bool,
) -> None:
    """Check that outputs fit x, need no gradient, and overlap tensors exactly or not at all."""
    if second_out is not None and not has_second:
        raise ValueError("second_out needs second; got second=None")
    if any(differentiated(t) for t in (x, *inputs)):
        raise ValueError(
            "out does not support automatic differentiation; x or an input requires a gradient"
        )
    for name, given, dtype in (("out", out, x.dtype), ("second_out", second_out, second_dtype)):
        if given is None:
            continue
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor; got {type(given).__name__}")
        if given.shape != x.shape:
            raise ValueError(
                f"{name} must have the shape of x, {list(x.shape)}; got {list(given.shape)}"
            )
        if given.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}; got {given.dtype}")
        if given.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}; got {given.device}")
        if not torch.compiler.is_compiling() and given.is_neg():
            raise ValueError(f"{name} must be a plain tensor; got a view that negates its memory")
        if given.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must not require a gradient")
        layout = torch.empty_like(x, device="meta").stride()
        if not _same_order(given.stride(), layout, given.shape):
            raise ValueError(
                f"{name} must have the layout of x, strides {layout}; got {given.stride()}"
            )
        for other_name, other in (("x", x), *((f"inputs[{k}]", m) for k, m in enumerate(inputs))):
            same = name == "out" and same_memory(given, other)
            if not same and overlap(given, other):
                raise ValueError(
                    f"{name} overlaps {other_name} in memory; "
                    f"give {other_name} itself or other memory"
                )
    if out is not None and second_out is not None and overlap(out, second_out):
        raise ValueError("second_out overlaps out in memory")


def _opaque() -> bool:
    """Whether tensors have no addresses: while tracing, and in torch.func transforms."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether element for element the two tensors are the same memory."""
    if a is b or _opaque():
        return a is b
    return (
        a.data_ptr() == b.data_ptr()
        and a.dtype == b.dtype
        and _same_order(a.stride(), b.stride(), a.shape)
    )


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the two tensors' address ranges meet."""
    if a.device != b.device or a.device.type == "meta" or a.numel() == 0 or b.numel() == 0:
        return False
    if _opaque() or isinstance(a, torch._subclasses.FakeTensor):
        return False
    return a.data_ptr() < _end(b) and b.data_ptr() < _end(a)


def _end(t: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr() + (last + 1) * t.element_size()


def _same_order(a: Sequence[int], b: Sequence[int], shape: Sequence[int]) -> bool:
    return all(size <= 1 or p == q for size, p, q in zip(shape, a, b, strict=True))
