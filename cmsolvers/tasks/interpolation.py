"""Interpolation between samples, through their latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise
from cmsolvers.denoisers.pairing import take
from cmsolvers.solvers.multistep_consistency import consistency_sample
from cmsolvers.tasks.chosen_sampler import Levels, Model, Sampler, sample, with_own_end
from cmsolvers.tasks.operators import working

__all__ = ["interpolate", "slerp"]


def slerp(x1: Tensor, x2: Tensor, alpha: float) -> Tensor:
    """Spherical interpolation of each sample, from x1 at alpha = 0 to x2 at 1.

    sin((1 - alpha) psi) / sin(psi) x1 + sin(alpha psi) / sin(psi) x2, psi the angle between them;
    linear where they point the same way or opposite ways.

    Args:
        x1: [B, ...].
        x2: like x1.
        alpha: a number.

    Returns:
        Tensor like x1.

    Raises:
        TypeError: no floating tensors, another dtype.
        ValueError: another shape or device, alpha not finite.

    Source: Song et al., "Denoising Diffusion Implicit Models" (2021), section 5.3; Shoemake,
    "Animating Rotation with Quaternion Curves" (1985).
    """
    _check_pair(check.state("x1", x1), check.state("x2", x2))
    alpha = check.finite("alpha", alpha)
    if x1.numel() == 0:
        return torch.empty_like(x1, requires_grad=False)
    a, b = (working(x).reshape(x.shape[0], -1) for x in (x1, x2))
    # atan2 keeps its digits where the angle is small, arccos does not.
    u, v = (t / t.norm(dim=1, keepdim=True) for t in (a, b))
    psi = 2.0 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    curved = torch.sin(psi) > 1e-6
    safe = torch.where(curved, psi, 0.5 * math.pi)
    w1 = torch.where(curved, torch.sin((1.0 - alpha) * safe) / torch.sin(safe), 1.0 - alpha)
    w2 = torch.where(curved, torch.sin(alpha * safe) / torch.sin(safe), alpha)
    return (w1[:, None] * a + w2[:, None] * b).reshape(x1.shape).to(x1.dtype)


def interpolate(
    model: Model,
    x1: Tensor,
    x2: Tensor,
    sigmas: Levels,
    n: int,
    *,
    sampler: Sampler = consistency_sample,
    seed: noise.SeedLike = None,
    **options: object,
) -> Tensor:
    """Samples from latents on the way between two: a path from the sample of x1 to that of x2.

    Args:
        model: what the sampler takes: a consistency function, or a denoiser.
        x1: [B, ...] at level sigmas[0].
        x2: like x1.
        sigmas: as the sampler takes them.
        n: how many, the two ends included; at least 2.
        sampler: any sampler of the library that works on noise levels, or a `functools.partial`
            of one.
        seed: as in `euler_pf_ode`; the n images between x1[i] and x2[i] get the same noise.
        options: for the sampler; tensors of B rows among its `extra_args` (in dicts, lists and
            tuples too) are repeated for all n.

    Returns:
        [n, B, ...].

    Raises:
        TypeError, ValueError: as `slerp`; what the sampler refuses; n below 2; options that make
            the sampler return more than samples.

    Source: Song et al., "Consistency Models" (2023), appendix D.
    """
    options = with_own_end(model, sampler, options)
    _check_pair(check.state("x1", x1), check.state("x2", x2))
    check.count("n", n, least=2)
    for name in ("return_info", "trajectory"):
        if options.get(name):
            raise ValueError(f"{name} must be left out here; got {check.describe(options[name])}")
    if options.get("extra_args"):
        every = torch.arange(len(x1), device=x1.device).repeat(n)
        extra = check.options("extra_args", options["extra_args"])
        options = {**options, "extra_args": take(extra, len(x1), every)}
    inner = [slerp(x1, x2, k / (n - 1)) for k in range(1, n - 1)]
    latents = torch.cat([x1, *inner, x2])
    key = _repeated(noise.key(seed, len(x1), device=x1.device), x1, n)
    found = sample(sampler, model, latents, sigmas, key, options)
    samples = check.state("the result of sampler", found)
    return samples.reshape(n, *x1.shape)


def _repeated(key: noise.Key, x: Tensor, n: int) -> noise.Key:
    """A key that gives each of n batches like x the noise that `key` gives x."""
    return noise.Key(table=key.rows(len(x), x.device).repeat(n, 1))


def _check_pair(x1: Tensor, x2: Tensor) -> None:
    if x2.shape != x1.shape or x2.device != x1.device:
        raise ValueError(
            f"x2 must have the shape and device of x1, {list(x1.shape)} on {x1.device}; "
            f"got {list(x2.shape)} on {x2.device}"
        )
    if x2.dtype is not x1.dtype:
        raise TypeError(f"x2 must have the dtype of x1, {x1.dtype}; got {x2.dtype}")
