"""One pass of a network in forward mode: what must be switched off for it, and what cannot be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook

from cmsolvers import checks as check
from cmsolvers.losses.forward_formulas import ForwardFormulas
from cmsolvers.losses.mixed_precision import casts_not_kept
from cmsolvers.losses.module_names import place_of_error
from cmsolvers.losses.plain_checkpoints import plain_checkpoints
from cmsolvers.losses.randomness import SameRandomness

_NO_FORWARD_MODE = (
    "Trying to use forward AD with",
    "You must implement the jvp function",
    "must override the setup_context",
    "jvp is not returning a view",
)


def jvp(
    function: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    *,
    through: bool,
) -> tuple[Tensor, Tensor]:
    """A function's value and its derivative along the tangents, by forward-mode AD.

    Args:
        function: `function(*primals) -> Tensor [B, ...]`.
        primals: floating tensors.
        tangents: one per primal, of its shape and dtype; None is 0.
        through: whether gradients follow.

    Raises:
        NotImplementedError: an operation has no forward mode; the text names its module.
        TypeError: the function returns no floating tensor.
    """
    if torch.compiler.is_compiling():
        with sdpa_kernel(SDPBackend.MATH):
            return _functional(function, primals, tangents)
    with forward_mode(through=through):
        try:
            if not (through and _many_processes()):
                return _dual(function, primals, tangents)
            same = SameRandomness(primals[0].device)
            try:
                with _refuse_sharded():
                    return _dual(function, primals, tangents)
            except _ShardedError:
                with same.replay():
                    return _functional(function, primals, tangents)
        except (NotImplementedError, RuntimeError) as error:
            if not any(text in str(error) for text in _NO_FORWARD_MODE):
                raise
            reason = str(error).split("\n")[0].rstrip(".")
            raise NotImplementedError(
                f"an operation {place_of_error(error.__traceback__)} has no forward mode "
                f'({reason}); use derivative="finite_difference", or an implementation with a '
                "forward-mode formula: torch's own scaled_dot_product_attention for attention, "
                "a jvp method for an autograd.Function"
            ) from error


def output(value: object) -> Tensor:
    """What the function returned: a floating tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(
            f"function must return a floating tensor [B, ...]; it returned {check.describe(value)}"
        )
    return value


def _dual(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Value and tangent with dual tensors, which hooks of modules see as plain ones."""
    with forward_ad.dual_level(), ForwardFormulas(dense=True):
        duals = [
            p if t is None else forward_ad.make_dual(p, t)  # type: ignore[no-untyped-call]
            for p, t in zip(primals, tangents, strict=True)
        ]
        value, tangent = forward_ad.unpack_dual(output(function(*duals)))  # type: ignore[no-untyped-call]
        return value, torch.zeros_like(value) if tangent is None else tangent


def _functional(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Value and tangent with torch.func, which torch.compile and FSDP2's hooks know."""
    moving = [i for i, tangent in enumerate(tangents) if tangent is not None]

    def of_moving(*moved: Tensor) -> Tensor:
        point = list(primals)
        for i, tensor in zip(moving, moved, strict=True):
            point[i] = tensor
        return output(function(*point))

    if not moving:
        value = of_moving()
        return value, torch.zeros_like(value)
    with ForwardFormulas(dense=False):
        found: tuple[Tensor, Tensor] = torch.func.jvp(  # type: ignore[assignment]
            of_moving, tuple(primals[i] for i in moving), tuple(tangents[i] for i in moving)
        )
    return found


@contextmanager
def forward_mode(*, through: bool) -> Iterator[None]:
    """A block whose network calls can be differentiated in forward mode.

    Attention runs its math kernel, `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` take
    their slow path, compiled functions run eagerly, activation checkpoints are plain calls, and
    autocast keeps no weight that is cast here without gradient.

    Args:
        through: whether gradients follow, so that casts of weights may be kept.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_no_fast_path())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and it loads for seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(plain_checkpoints())
        if not through:
            stack.enter_context(casts_not_kept())
        yield


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """A block in which attention layers in eval mode do not take their fused inference kernels."""
    kept = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(kept)


class _ShardedError(Exception):
    """A module is sharded: its hooks know torch.func, not dual tensors with gradient."""


def _many_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def _refuse_sharded() -> Iterator[None]:
    """A block in which the first call of an FSDP2 module raises, before its hooks run."""
    from torch.distributed.fsdp import FSDPModule

    def refuse(module: nn.Module, args: Any) -> None:
        if forward_ad._current_level >= 0 and isinstance(module, FSDPModule):
            raise _ShardedError

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
