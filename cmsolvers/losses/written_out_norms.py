"""Normalisation as sums, products and a root, for derivatives in forward mode.

Torch's forward mode of normalisation is a decomposition that torch.compile (to 2.13 at least)
cannot trace, that takes hundreds of microseconds of the host, and whose tangents do not have the
dtype of their values where autocast mixes two. Arguments are named and ordered as in
`torch.nn.functional`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Constant: TypeAlias = Callable[[Tensor | float, Tensor], Tensor | float]
"""Makes a weight or number ready for a sum or product with a tensor that has a tangent."""


def layer_norm(
    constant: Constant,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.layer_norm`."""
    dims = list(range(-len(normalized_shape), 0))
    normal = _affine(constant, _normal(constant, _work(input), dims, eps), weight, bias)
    return normal if _stays_float32(input) else normal.to(input.dtype)


def group_norm(
    constant: Constant,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.group_norm`."""
    size = math.prod(input.shape[1:]) // num_groups
    groups = _work(input).reshape(input.shape[0], num_groups, size)
    normal = _normal(constant, groups, [2], eps).reshape(input.shape)
    normal = _affine(constant, normal, _by_channel(weight, input), _by_channel(bias, input))
    return normal if _stays_float32(input) else normal.to(input.dtype)


def batch_norm(
    constant: Constant,
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` by running statistics."""
    factor = torch.rsqrt(running_var + eps)
    if weight is not None:
        factor = factor * weight
    shift = -running_mean * factor
    if bias is not None:
        shift = shift + bias
    by_channel = _by_channel(factor, input), _by_channel(shift, input)
    return _affine(constant, _work(input), *by_channel).to(input.dtype)


def _work(x: Tensor) -> Tensor:
    """x in float32 at least, where torch sums too."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _stays_float32(x: Tensor) -> bool:
    """Whether autocast returns layer and group norms in float32: on every device but the CPU."""
    return x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)


def _normal(constant: Constant, x: Tensor, dims: list[int], eps: float) -> Tensor:
    """Mean 0 and variance 1 over some dimensions."""
    centred = x - x.mean(dims, keepdim=True)
    variance = (centred * centred).mean(dims, keepdim=True)
    return centred * torch.rsqrt(variance + constant(eps, variance))


def _by_channel(value: Tensor | None, x: Tensor) -> Tensor | None:
    """Values per channel, for products with x [B, C, ...]."""
    return None if value is None else value.reshape(1, -1, *(1,) * (x.ndim - 2))


def _affine(
    constant: Constant, normal: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The normalised tensor times the weight plus the bias."""
    if weight is not None:
        normal = normal * constant(weight, normal)
    if bias is not None:
        normal = normal + constant(bias, normal)
    return normal
