"""Normalisation written out, for forward mode where torch.compile traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class TracedNorms(TorchFunctionMode):
    """A block in which layer_norm, group_norm and batch_norm are sums, products and a root.

    Their forward mode in torch is a decomposition that torch.compile (to 2.13 at least) cannot
    trace. batch_norm is written out with running statistics alone; in training mode it moves them,
    which cannot be traced inside of a derivative either.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        more, name = kwargs or {}, getattr(func, "__name__", "")
        training = name == "batch_norm" and (args[5:6] == (True,) or more.get("training", False))
        if name not in _NORMS or training:
            return func(*args, **more)
        return _NORMS[name](*args, **more)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    return _affine(input, _normal(_work(input), dims, eps), weight, bias)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    groups = _work(input).reshape(input.shape[0], num_groups, -1)
    normal = _normal(groups, [2], eps).reshape(input.shape)
    return _affine(input, normal, *_by_channel(input, weight, bias))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    mean, variance = _by_channel(input, running_mean, running_var)
    normal = (_work(input) - mean) * torch.rsqrt(variance + eps)
    return _affine(input, normal, *_by_channel(input, weight, bias))


_NORMS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
}


def _work(x: Tensor) -> Tensor:
    """x in float32 at least, where torch sums too."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normal(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """Mean 0 and variance 1 over some dimensions."""
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _by_channel(x: Tensor, *values: Any) -> list[Any]:
    """Values per channel, for products with x [B, C, ...]."""
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return [None if value is None else value.reshape(shape) for value in values]


def _affine(x: Tensor, normal: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The normalised x times the weight plus the bias, in the dtype of x."""
    if weight is not None:
        normal = normal * weight
    if bias is not None:
        normal = normal + bias
    return normal.to(x.dtype)
