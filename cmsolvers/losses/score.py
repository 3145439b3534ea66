"""Denoising score matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.losses import terms
from cmsolvers.losses.distances import l2
from cmsolvers.losses.repeated_noise import draw_of
from cmsolvers.processes.coordinates import in_karras


def edm_weight(sigma_data: float = 0.5) -> Callable[[Tensor], Tensor]:
    """w(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, which is 1 / c_out^2 of EDM.

    With it the loss of an untrained network (F = 0) is 1 at all levels.

    Args:
        sigma_data: standard deviation of the data, positive.

    Returns:
        w, from levels of any shape to weights of that shape.

    Raises:
        TypeError: sigma_data is no number.
        ValueError: sigma_data is not positive and finite.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
        (2022), table 1.
    """
    variance = check.positive("sigma_data", sigma_data) ** 2

    def weight(sigma: Tensor) -> Tensor:
        return (sigma * sigma + variance) / (sigma * sigma * variance)

    return weight


def denoising_score_matching(
    denoiser: Callable[..., Tensor],
    x0: Tensor,
    sigma: float | Tensor,
    *,
    weight: Callable[[Tensor], Tensor] | None = None,
    sigma_data: float = 0.5,
    seed: noise.SeedLike = None,
    draw: int | None = None,
    offset: int = 0,
    extra_args: Mapping[str, object] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """E w(sigma) |D(x0 + sigma z, sigma) - x0|^2, the mean over the elements of each sample.

    Its minimiser is the exact denoiser E[x0 | x], and so the score (D - x) / sigma^2.

    Args:
        denoiser: D(x, sigma, **extra_args), for instance `EDM(net)`.
        x0: clean data [B, ...].
        sigma: positive levels of Karras coordinates, a number or a tensor [] or [B]; for a denoiser
            in other coordinates sigma / alpha, such as t / (1 - t) of a flow.
        weight: w(sigma [B], float64) -> [B]; None is `edm_weight(sigma_data)`.
        sigma_data: standard deviation of the data, for the default weight.
        seed: seed or `noise.Key` of the noise; sample i of draw k gets the same noise in any batch.
        draw: which draw of the training-noise stream, usually the training step. Without it (None)
            the draw is 0, and the same seed adds the same noise to every batch.
        offset: id of the first sample, for shards.
        extra_args: passed to the denoiser.
        reduction: "mean", "sum" or "none" (a tensor [B]).

    Returns:
        The loss, in float32 at least.

    Warns:
        UserWarning: once, where no draw is given and a seed that is a number meets a second batch.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: wrong shapes, levels that are not positive, an unknown reduction.

    Source: Vincent (2011); Karras et al. (2022), eq. 2 and section 5.
    """
    check.function("denoiser", denoiser)
    reduction = terms.reduction_name(reduction)
    level = terms.levels("sigma", sigma, check.state("x0", x0))
    extra = check.options("extra_args", extra_args)
    weight = edm_weight(sigma_data) if weight is None else check.function("weight", weight)
    # Levels go to a model in float32 at least: float16 would merge sigma = 0.002 with its
    # neighbours.
    dtype = torch.promote_types(x0.dtype, torch.float32)
    draw = draw_of("denoising_score_matching", x0, seed, draw, offset)
    x = terms.noised(x0, level, seed, draw, offset)
    denoised = check.model_output("denoiser", in_karras(denoiser)(x, level.to(dtype), **extra), x0)
    return terms.weigh(l2(denoised, x0), weight(level), reduction)
