"""One pass of a network in forward mode: what must be switched off for it, and what cannot be."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from cmsolvers import checks as check
from cmsolvers.losses.derivatives.forward_formulas import ForwardFormulas
from cmsolvers.losses.derivatives.mixed_precision import casts_not_kept
from cmsolvers.losses.derivatives.module_names import place_of_error
from cmsolvers.losses.evaluation.plain_checkpoints import plain_checkpoints
from cmsolvers.losses.evaluation.randomness import SameRandomness
from cmsolvers.ops.one_forward_mode import one_forward_mode

_CHANGES_A_BUFFER = "would mutate a captured Tensor"
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
        with sdpa_kernel(SDPBackend.MATH), ForwardFormulas(eager=False):
            return _functional(function, primals, tangents)
    with one_forward_mode(), forward_mode(through=through), ForwardFormulas(eager=True):
        try:
            by = _with_gradient if through and torch.is_grad_enabled() else _dual
            return by(function, primals, tangents)
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
    with forward_ad.dual_level():
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
    found: tuple[Tensor, Tensor] = torch.func.jvp(  # type: ignore[assignment]
        of_moving, tuple(primals[i] for i in moving), tuple(tangents[i] for i in moving)
    )
    return found


def _with_gradient(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Value and tangent with a graph through both.

    torch.func does it where dual tensors do not: softmax saves what they change in place, and the
    hooks of FSDP2 know it alone. It lets no buffer change, so a network that does (batch norm in
    training mode) has dual tensors after all.
    """
    same = SameRandomness(primals[0].device)
    try:
        with _prepare_wrappers():
            return _functional(function, primals, tangents)
    except _NotReadyError as found:
        found.wrapper._has_rebuilt_buckets = bool(found.wrapper.reducer._rebuild_buckets())
        again = _functional
    except RuntimeError as error:
        if _CHANGES_A_BUFFER not in str(error):
            raise
        again = _dual
    with same.replay():
        return again(function, primals, tangents)


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


class _NotReadyError(Exception):
    """DistributedDataParallel would make its buckets inside of torch.func, which it cannot."""

    def __init__(self, wrapper: Any) -> None:
        super().__init__()
        self.wrapper = wrapper


@contextmanager
def _prepare_wrappers() -> Iterator[None]:
    """A block in which the call of a wrapper raises that has still to order its buckets.

    DistributedDataParallel does so once, in the first pass after the first gradients.
    """
    thread = threading.get_ident()

    def refuse(module: nn.Module, args: Any) -> None:
        if (
            isinstance(module, DistributedDataParallel)
            and not module._has_rebuilt_buckets
            and threading.get_ident() == thread
        ):
            raise _NotReadyError(module)

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
