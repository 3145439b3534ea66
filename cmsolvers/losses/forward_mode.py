"""One pass of a network in forward mode: what must be switched off for it, and what cannot be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmsolvers import checks as check

_NO_FORWARD_MODE = (
    "Trying to use forward AD with",
    "You must implement the jvp function",
    "does not support forward mode AD",
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
        return _traced(function, primals, tangents)
    with forward_mode(through=through), forward_ad.dual_level():
        duals = [
            p if t is None else forward_ad.make_dual(p, t)  # type: ignore[no-untyped-call]
            for p, t in zip(primals, tangents, strict=True)
        ]
        try:
            result = output(function(*duals))
        except (NotImplementedError, RuntimeError) as error:
            if not any(text in str(error) for text in _NO_FORWARD_MODE):
                raise
            raise NotImplementedError(_explained(error)) from error
        value, tangent = forward_ad.unpack_dual(result)  # type: ignore[no-untyped-call]
        return value, torch.zeros_like(value) if tangent is None else tangent


def output(value: object) -> Tensor:
    """What the function returned: a floating tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(
            f"function must return a floating tensor [B, ...]; it returned {check.describe(value)}"
        )
    return value


def _traced(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """The same where torch.compile traces, which knows torch.func alone."""
    moving = [i for i, tangent in enumerate(tangents) if tangent is not None]

    def of_moving(*moved: Tensor) -> Tensor:
        point = list(primals)
        for i, tensor in zip(moving, moved, strict=True):
            point[i] = tensor
        return output(function(*point))

    if not moving:
        value = of_moving()
        return value, torch.zeros_like(value)
    with sdpa_kernel(SDPBackend.MATH):
        found: tuple[Tensor, Tensor] = torch.func.jvp(  # type: ignore[assignment]
            of_moving, tuple(primals[i] for i in moving), tuple(tangents[i] for i in moving)
        )
    return found


@contextmanager
def forward_mode(*, through: bool) -> Iterator[None]:
    """A block whose network calls can be differentiated in forward mode.

    Attention runs its math kernel, `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` take
    their slow path, compiled functions run eagerly, reentrant checkpoints are plain calls, and
    autocast keeps no weight that is cast here without gradient.

    Args:
        through: whether gradients follow, so that casts of weights may be kept.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_no_fast_path())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_plain_checkpoints())
        if not through:
            stack.enter_context(casts_not_kept())
        yield


@contextmanager
def casts_not_kept() -> Iterator[None]:
    """A block in which autocast keeps no casts of weights.

    Under `torch.no_grad` it would keep casts without gradient, and a later pass with gradient in
    the same autocast region would take them: its weights would get no gradient at all.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """A block in which attention layers in eval mode do not take their fused inference kernels."""
    kept = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(kept)


_LOCK = threading.Lock()
_HERE = threading.local()
_BLOCKS: list[Any] = []  # torch's own class, once for every block that is open


class _PlainOrReentrant:
    """Stands for torch's reentrant checkpoint while a block of `_plain_checkpoints` is open."""

    @staticmethod
    def apply(run: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if getattr(_HERE, "depth", 0):
            return run(*args)
        return _BLOCKS[0].apply(run, preserve_rng_state, *args)


@contextmanager
def _plain_checkpoints() -> Iterator[None]:
    """A block in which this thread's checkpoints with `use_reentrant=True` are plain calls.

    They are a custom autograd.Function without forward mode; without gradient there is nothing to
    checkpoint. Other threads keep theirs.
    """
    where: Any = torch.utils.checkpoint
    with _LOCK:
        _BLOCKS.append(_BLOCKS[0] if _BLOCKS else where.CheckpointFunction)
        where.CheckpointFunction = _PlainOrReentrant
    _HERE.depth = getattr(_HERE, "depth", 0) + 1
    try:
        yield
    finally:
        _HERE.depth -= 1
        with _LOCK:
            own = _BLOCKS.pop()
            if not _BLOCKS:
                where.CheckpointFunction = own


def _explained(error: BaseException) -> str:
    """What has no forward mode, where it stands and what to do."""
    reason = str(error).split("\n")[0].rstrip(".")
    return (
        f"an operation {place(error.__traceback__)} has no forward mode ({reason}); "
        'use derivative="finite_difference", or an implementation with a forward-mode formula '
        "(a jvp method of the autograd.Function, torch's own scaled_dot_product_attention)"
    )


def place(traceback: TracebackType | None) -> str:
    """The innermost module of a traceback, as a phrase: "in Attention 'blocks.3.attn' of DiT"."""
    modules: list[nn.Module] = []
    while traceback is not None:
        own = traceback.tb_frame.f_locals.get("self")
        if isinstance(own, nn.Module):
            modules.append(own)
        traceback = traceback.tb_next
    return of_modules(modules)


def of_modules(modules: Sequence[nn.Module]) -> str:
    """The last of the modules that are being called, named as the first one that holds it does."""
    if not modules:
        return "of the function"
    inner = modules[-1]
    for root in modules:
        for name, module in root.named_modules():
            if module is inner and name:
                return f"in {type(inner).__name__} {name!r} of {type(root).__name__}"
    return f"in {type(inner).__name__}"
