"""Zero-shot editing of images with a consistency function or a denoiser, without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, overload

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import noise, ops
from cmsolvers.denoisers.composed import Rewritten, denoised, own_rows
from cmsolvers.processes.coordinates import coordinates_of
from cmsolvers.solvers.multistep_consistency import consistency_sample
from cmsolvers.tasks.chosen_sampler import Levels, Model, Result, Sampler, sample, with_own_end
from cmsolvers.tasks.operators import Colorize, Inpaint, Operator, SuperResolve, working

__all__ = [
    "Colorize",
    "Conditioned",
    "Inpaint",
    "Operator",
    "SuperResolve",
    "conditioned",
    "denoise",
    "edit",
    "stroke",
]


class Conditioned(Rewritten):
    """A model whose output is corrected by what is known of y; made by `conditioned`."""

    def __init__(self, model: Model, y: Tensor, operator: Operator) -> None:
        super().__init__(model)
        _check_operator(operator)
        operator.check("y", check.state("y", y))
        self._shape, self._operator = y.shape, operator
        given = operator.transform(working(y))
        self._held = given, operator.known(given).expand_as(given)

    def rewrite(self, x: Tensor, d: Tensor) -> Tensor:
        return self._put(x, d, *self._held)

    def at(
        self, x: Tensor, sigma: Tensor, level: float | None, extra: Mapping[str, object]
    ) -> Tensor:
        d = denoised(self.inner, x, sigma, level, extra)
        return self._put(x, d, *own_rows(self._held, extra))

    def _put(self, x: Tensor, d: Tensor, given: Tensor, known: Tensor) -> Tensor:
        if d.shape != (given.shape[0], *self._shape[1:]):
            raise ValueError(
                f"x must have the shape of y, {list(self._shape)}; got {list(d.shape)} "
                "(a solver that drops samples at their end needs mode='masked', which keeps them)"
            )
        return self._operator.replace(d.to(x.dtype), given, known)


def conditioned(model: Model, y: Tensor, operator: Operator) -> Conditioned:
    """D with what is known of y put in its place, for any sampler.

    From a start alpha y + sigma z every step of every sampler of the library then leaves the known
    part at alpha y + sigma z exactly, because its rows are exact where D is constant: it is
    replaced by the noised measurement at each level, and by the measurement at the end. (In the
    coordinates of a process whose path is curved only nearly so, but for `dpmpp_2m` and `unipc`.)
    `restart` as the sampler adds the resampling that RePaint has.

    Args:
        model: `D(x, sigma, **extra_args)` or a consistency function.
        y: [B, ...], the image; what the operator does not know of it is not read. It belongs to
            one batch, whose rows `rk_pf_ode` and `dpm_adaptive` drop with the samples that have
            ended; `adaptive_sde` wants mode="masked".
        operator: `Inpaint`, `Colorize`, `SuperResolve` or another `Operator`.

    Returns:
        A denoiser.

    Raises:
        TypeError: arguments of the wrong kind.
        ValueError: y that does not fit the operator; when called, x of another shape than y.

    Source: Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model"
    (2023), eq. 13; Song et al., "Score-Based Generative Modeling through Stochastic Differential
    Equations" (2021), appendix I.2 and I.3; Lugmayr et al., "RePaint" (2022).
    """
    return Conditioned(model, y, operator)


@overload
def edit(
    model: Model,
    y: Tensor,
    sigmas: Levels,
    *,
    operator: Operator,
    sampler: Sampler = ...,
    seed: noise.SeedLike = None,
    return_info: Literal[False] = False,
    trajectory: None = None,
    **options: object,
) -> Tensor: ...


@overload
def edit(
    model: Model,
    y: Tensor,
    sigmas: Levels,
    *,
    operator: Operator,
    sampler: Sampler = ...,
    seed: noise.SeedLike = None,
    **options: object,
) -> Result: ...


def edit(
    model: Model,
    y: Tensor,
    sigmas: Levels,
    *,
    operator: Operator,
    sampler: Sampler = consistency_sample,
    seed: noise.SeedLike = None,
    **options: object,
) -> Result:
    """An image with what is known of y, and the rest from the model.

    Inpainting, colourisation and super-resolution are the operators of these names. With
    `consistency_sample` it is algorithm 4 of Consistency Models: noise, f, put back what is known,
    and so on down the levels. With a sampler for denoisers it is replacement (see `conditioned`),
    which meets the measurement but samples the rest given it only approximately: of two clusters
    with one coordinate known, `heun_pf_ode` completes 84 % of the samples with the right one,
    `ddpm_ancestral` 97 %, `heun_pf_ode` with s_churn = 20 99 %. Noise on the way helps.

    Args:
        model: what the sampler takes: a consistency function, or a denoiser.
        y: [B, ...], the image; see `operator.lift` for making it of a measurement.
        sigmas: strictly descending, as the sampler takes them; end in 0 with a denoiser.
        operator: `Inpaint(mask)`, `Colorize()`, `SuperResolve(factor)`, or another `Operator`.
        sampler: any sampler of the library that works on noise levels, or a `functools.partial`
            of one.
        seed: as in `euler_pf_ode`; the start takes draw 0 of stream 0, step i what the sampler
            takes.
        options: for the sampler.

    Returns:
        What the sampler returns: images like y. Known pixels are those of y to the bit (with
        `lms`, `deis` and `ipndm`, whose last step weighs several D, to rounding); known brightness
        and means to rounding.

    Raises:
        TypeError: arguments of the wrong kind.
        ValueError: y that does not fit the operator; what the sampler refuses.

    Source: Song et al., "Consistency Models" (2023), algorithm 4 and appendix D.
    """
    _check_operator(operator)
    operator.check("y", check.state("y", y))
    options = with_own_end(model, sampler, options)
    target = conditioned(model, y, operator)
    kept = torch.empty_like(y).copy_(operator.kept(y))  # the layout of y
    return _run(sampler, target, kept, sigmas, seed, options)


@overload
def stroke(
    model: Model,
    y: Tensor,
    sigmas: Levels,
    *,
    operator: Operator | None = None,
    sampler: Sampler = ...,
    seed: noise.SeedLike = None,
    return_info: Literal[False] = False,
    trajectory: None = None,
    **options: object,
) -> Tensor: ...


@overload
def stroke(
    model: Model,
    y: Tensor,
    sigmas: Levels,
    *,
    operator: Operator | None = None,
    sampler: Sampler = ...,
    seed: noise.SeedLike = None,
    **options: object,
) -> Result: ...


def stroke(
    model: Model,
    y: Tensor,
    sigmas: Levels,
    *,
    operator: Operator | None = None,
    sampler: Sampler = consistency_sample,
    seed: noise.SeedLike = None,
    **options: object,
) -> Result:
    """An image like the model's data that follows y, a drawing or a coarse picture.

    y is noised to sigmas[0] and sampled from there: the lower that level, the closer to y.

    Args:
        model: as in `edit`, and so are sampler, seed and options.
        y: [B, ...], the picture to follow.
        sigmas: strictly descending; the larger sigmas[0], the more of y is lost.
        operator: what of y stays as it is, such as `Inpaint(mask)`; None: nothing does.
        sampler: as in `edit`.
        seed: as in `edit`.
        options: for the sampler.

    Returns:
        What the sampler returns.

    Raises:
        TypeError, ValueError: as `edit`.

    Source: Meng et al., "SDEdit" (2022), section 3; Song et al., "Consistency Models"
    (2023), appendix D.
    """
    check.state("y", y)
    options = with_own_end(model, sampler, options)
    target = model if operator is None else conditioned(model, y, operator)
    return _run(sampler, target, y, sigmas, seed, options)


def denoise(f: Model, x: Tensor, sigma: float | Tensor, **extra_args: object) -> Tensor:
    """f(x, sigma): the clean image behind x, whose noise has standard deviation sigma.

    Args:
        f: a consistency function gives one sample, a denoiser the mean of all that fit x.
        x: [B, ...].
        sigma: positive; a number or a tensor [] or [B].
        extra_args: for f.

    Returns:
        Tensor like x.

    Raises:
        TypeError, ValueError: as for a denoiser.

    Source: Song et al., "Consistency Models" (2023), appendix D.
    """
    check.function("f", f)
    check.state("x", x)
    level = check.level("sigma", sigma, x)
    if not isinstance(level, Tensor):
        level = torch.full((), level, dtype=x.dtype, device=x.device)
    return check.model_output("f", f(x, level.expand(x.shape[0]), **extra_args), x)


# --- parts ------------------------------------------------------------------------------------


def _run(
    sampler: Sampler,
    model: Model,
    y: Tensor,
    sigmas: Levels,
    seed: noise.SeedLike,
    options: Mapping[str, object],
) -> Result:
    """Sample from y noised to the first level."""
    first = check.sigmas("sigmas", sigmas, least=1)[0]
    key = noise.key(seed, y.shape[0], device=y.device)
    kept, spread = coordinates_of(model).noised_to(0.0, first)
    x = ops.weighted_step(y, (), (kept,), w_z=spread, seed=key, stream=noise.LATENT)
    return sample(sampler, model, x, sigmas, key, options)


def _check_operator(operator: object) -> None:
    if not isinstance(operator, Operator):
        raise TypeError(f"operator must be an Operator; got {check.describe(operator)}")
