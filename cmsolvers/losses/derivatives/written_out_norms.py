"""Normalisation as sums, products and a root, for derivatives in forward mode.

Torch's forward mode of normalisation (2.13) takes the saved mean and deviation as constants, so
that gradients through the derivative are wrong for layer, instance and (in training mode) batch
norms; torch.compile cannot trace it; it takes hundreds of microseconds of the host; and where
autocast mixes two dtypes, its tangents do not have that of their values. Arguments are named and
ordered as in `torch.nn.functional`.
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
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`; in training mode it moves the running statistics too."""
    channels = _by_channel(weight, input), _by_channel(bias, input)
    if training or running_mean is None or running_var is None:
        x = _work(input)
        dims = [0, *range(2, x.ndim)]
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                variance, mean = torch.var_mean(x.detach(), dims)
                # Past the version that the backward pass of another pass checks, as torch does.
                running_mean.data.lerp_(mean.to(running_mean), momentum)
                running_var.data.lerp_(variance.to(running_var), momentum)
        normal = _normal(constant, x, dims, eps)
        return _affine(constant, normal, *channels).to(input.dtype)
    factor = torch.rsqrt(running_var + eps)
    by_channel = _by_channel(factor, input), _by_channel(-running_mean * factor, input)
    normal = _affine(constant, _work(input), *by_channel)
    return _affine(constant, normal, *channels).to(input.dtype)


def instance_norm(
    constant: Constant,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.instance_norm`, which moves no running statistics here."""
    if not use_input_stats:
        return batch_norm(constant, input, running_mean, running_var, weight, bias, eps=eps)
    normal = _normal(constant, _work(input), list(range(2, input.ndim)), eps)
    channels = _by_channel(weight, input), _by_channel(bias, input)
    return _affine(constant, normal, *channels).to(input.dtype)


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
