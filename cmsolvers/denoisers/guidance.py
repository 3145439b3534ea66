"""Guidance of a denoiser by a second one: without a classifier, or by a weaker model.

A guided denoiser is a denoiser, `D(x, sigma, **extra_args)`, so it nests and runs under every
sampler. `Info.nfe` counts evaluations of the composed denoiser, so that a solver's NFE stays what
its table says; a guided one costs two network evaluations each, and one outside of its interval.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers import ops
from cmsolvers.denoisers.composed import (
    Composed,
    all_samples,
    denoised,
    folds,
    own_rows,
    signature,
)
from cmsolvers.denoisers.pairing import Weight, alike, asked, halves, joined_arguments, twice
from cmsolvers.denoisers.preconditioning import training_mode
from cmsolvers.denoisers.protocol import Arguments, Denoiser, Extra
from cmsolvers.processes.coordinates import Coordinates, coordinates_of

__all__ = ["Guided", "autoguided", "guided"]


class Guided(Composed):
    """D = D_u + w (D_c - D_u); made by `guided` and `autoguided`, which document the arguments.

    Attributes:
        denoiser: the denoiser of D_c.
        weak: the denoiser of D_u; None where that is `denoiser` too.
        sides: both, in this order.
        own: the extra arguments of each.
        one_call: whether both come from one call on a batch of 2 B.
        rescale: phi of CFG-rescale.
    """

    def __init__(
        self,
        sides: tuple[Denoiser, Denoiser],
        own: tuple[Arguments, Arguments],
        scale: float | Tensor,
        interval: tuple[float, float],
        rescale: float = 0.0,
        batched: bool = False,
    ) -> None:
        super().__init__()
        shared = sides[0] is sides[1]
        # One module under two names would stand in state_dict twice.
        self.denoiser: Denoiser = sides[0]
        self.weak: Denoiser | None = None if shared else sides[1]
        self.own = own
        self._pair = _guidance_weights(scale)
        self._low, self._high = _interval(interval)
        self.rescale = check.within("rescale", rescale, 0.0, 1.0)
        self.one_call = check.flag("batched", batched) and shared
        self.dtype = sides[0].dtype if folds(sides[0]) else None
        self.training = training_mode(*sides)
        first, second = map(coordinates_of, sides)
        if first != second:
            raise ValueError(
                f"weak must be in the coordinates of denoiser, {first}; got one in {second}"
            )

    @property
    def coordinates(self) -> Coordinates:
        return coordinates_of(self.denoiser)

    @property
    def sides(self) -> tuple[Denoiser, Denoiser]:
        """The denoisers of D_c and D_u, one object twice where they share it."""
        first, second = self.denoiser, self.weak
        return first, first if second is None else second

    def _settled(self) -> Hashable | None:
        first, second = self.sides
        behind = signature(first), signature(second)
        if type(self) is not Guided or isinstance(self._pair[0], Tensor) or None in behind:
            return None
        interval = self._low, self._high
        how = self.rescale, self.one_call, first is second
        return "guide", self._pair, interval, how, behind

    def weights(self, level: float) -> tuple[Weight, Weight]:
        """Weights of D_c and D_u at a level; a side of weight 0.0 is not called."""
        return self._pair if self._covers(level) else (1.0, 0.0)

    def _covers(self, level: float) -> bool:
        return self._low < level <= self._high

    def check_batch(self, x: Tensor) -> None:
        """Check that the scale fits the batch."""
        _check_scale(self._pair[0], x)

    def _weights_of(
        self, sigma: Tensor, level: float | None, extra: Extra
    ) -> tuple[Weight, Weight]:
        """The same for the samples at hand, at levels that perhaps only the device knows."""
        pair: tuple[Weight, Weight] = own_rows(self._pair, extra)
        _check_scale(pair[0], sigma)
        if level is not None:
            return pair if self._covers(level) else (1.0, 0.0)
        if self._low == 0.0 and math.isinf(self._high):
            return pair
        inside = (sigma > self._low) & (sigma <= self._high)
        w = torch.where(inside, pair[0], 1.0).double()
        return w, 1.0 - w

    def arguments(self, extra: Extra) -> tuple[Arguments, Arguments]:
        """Extra arguments of both sides; their own replace what the caller hands to both."""
        first, second = own_rows(self.own, extra)
        return {**extra, **first}, {**extra, **second}

    def at(self, x: Tensor, sigma: Tensor, level: float | None, extra: Extra) -> Tensor:
        """D of both sides, or of the one that has a weight; arguments as in `Composed.at`."""
        sides = self.sides
        if self.one_call:  # a composed side learns that it gets its batch twice
            extra = {**all_samples(sides[0], x), **extra}
        weights = self._weights_of(sigma, level, extra)
        args = self.arguments(extra)
        used = asked(weights)
        if used == (1,) and self.rescale:
            used = (0, 1)  # the spread of D_c is wanted all the same
        if len(used) == 1:
            return denoised(sides[used[0]], x, sigma, level, args[used[0]])
        if self.one_call:
            both = joined_arguments(*args, x.shape[0])
            d = denoised(sides[0], twice(x), twice(sigma), level, both)
            outputs = halves(d)
        else:
            outputs = (
                denoised(sides[0], x, sigma, level, args[0]),
                denoised(sides[1], x, sigma, level, args[1]),
            )
        guided_d = ops.weighted_step(x, alike(outputs, x.dtype), (0.0, *weights))
        return _rescaled(guided_d, outputs[0], self.rescale) if self.rescale else guided_d


def guided(
    denoiser: Denoiser,
    scale: float | Tensor,
    *,
    conditional: Arguments | None = None,
    unconditional: Arguments | None = None,
    weak: Denoiser | None = None,
    interval: tuple[float, float] = (0.0, math.inf),
    rescale: float = 0.0,
    batched: bool = True,
) -> Guided:
    """Classifier-free guidance, D = D_u + w (D_c - D_u).

    In a sampler both network outputs go into the step as they are, with weights w and 1 - w, where
    the step then has at most four inputs (one- and two-stage solvers) and `rescale` is 0; elsewhere
    D is made by one launch more.

    Tensors whose first size is B are rows of samples. Where `rk_pf_ode` and `dpm_adaptive` drop
    samples that have ended they drop their rows, and `log_likelihood` repeats them; inside of a
    function of your own, or in the score of `adaptive_sde`, use mode="masked".

    Args:
        denoiser: `D(x, sigma, **extra_args)`.
        scale: w, a number or a floating tensor [B] on the device of x, without a gradient. 1 is
            D_c, 0 is D_u; the side of weight 0 is then not called.
        conditional: the extra arguments that make D_c. What a sampler gets as `extra_args` goes to
            both sides, and these two replace it by name.
        unconditional: the extra arguments that make D_u.
        weak: the denoiser of D_u; None is `denoiser` itself.
        interval: (low, high): guidance where low < sigma <= high, D_c alone elsewhere; there the
            unconditional side is not called, unless levels come as a tensor (adaptive solvers),
            whose entries the host does not know.
        rescale: phi in [0, 1]: D becomes (1 - phi + phi std(D_c) / std(D)) D, with the standard
            deviation over each sample.
        batched: call one denoiser once, on both sides as one batch of 2 B. Extra arguments are then
            tensors of B rows on both sides (dicts of them also), or the same for both. A network
            that does not treat samples alone may give other values than in two calls.

    Returns:
        A denoiser, and a module: denoisers that are modules are its submodules "denoiser" and
        "weak". Tensors among conditional and unconditional and a tensor as scale are no buffers:
        they stay as they are when the module moves, and out of its state_dict.

    Raises:
        TypeError: a denoiser that cannot be called, arguments of the wrong kind, neither
            unconditional nor weak; when called, extra arguments that cannot be batched.
        ValueError: a scale that is not finite or requires a gradient, an interval that is empty, a
            rescale outside [0, 1].

    Source: Ho & Salimans, "Classifier-Free Diffusion Guidance" (2022), eq. 6 (w there is w - 1
    here); Kynkaanniemi et al., "Applying Guidance in a Limited Interval" (2024); Lin et
    al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2023), eq. 15 and 16, on D.
    """
    sides = check.function("denoiser", denoiser), check.optional_function("weak", weak) or denoiser
    if unconditional is None and weak is None:
        raise TypeError("unconditional must be a dict with str keys where weak is None; got None")
    own = check.options("conditional", conditional), check.options("unconditional", unconditional)
    return Guided(sides, own, scale, interval, rescale, batched)


def autoguided(
    denoiser: Denoiser,
    weak: Denoiser,
    scale: float | Tensor,
    *,
    interval: tuple[float, float] = (0.0, math.inf),
) -> Guided:
    """Guidance by a weaker version of the model: D = D_weak + w (D - D_weak).

    Args:
        denoiser: `D(x, sigma, **extra_args)`.
        weak: the same, of a smaller or less trained model; both get the same extra arguments.
        scale: w, a number or a floating tensor [B] on the device of x, without a gradient. 1 is
            the denoiser, 0 is the weak one; the side of weight 0 is then not called.
        interval: (low, high): guidance where low < sigma <= high, the denoiser alone elsewhere;
            there the weak one is not called, unless levels come as a tensor (adaptive solvers),
            whose entries the host does not know.

    Returns:
        A denoiser, and a module: denoisers that are modules are its submodules "denoiser" and
        "weak". A tensor as scale stays where it is when the module moves.

    Raises:
        TypeError: a denoiser that cannot be called, a scale or an interval of the wrong kind.
        ValueError: a scale that is not finite or requires a gradient, an interval that is empty.

    Source: Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself" (2024).
    """
    return guided(denoiser, scale, weak=check.function("weak", weak), interval=interval)


def _guidance_weights(scale: float | Tensor) -> tuple[Weight, Weight]:
    """(w, 1 - w)."""
    if not isinstance(scale, Tensor):
        w = check.finite("scale", scale)
        return w, 1.0 - w
    check.tensor("scale", scale)
    if scale.ndim > 1:
        raise ValueError(f"scale must be a number or have shape [B]; got shape {list(scale.shape)}")
    if scale.requires_grad:
        raise ValueError("scale must not require a gradient: weights are constants; detach it")
    wide = scale.double()
    return wide, 1.0 - wide


def _check_scale(w: Weight, x: Tensor) -> None:
    if isinstance(w, Tensor) and w.shape not in ((), (x.shape[0],)):
        raise ValueError(
            f"scale must be a number or have shape [B] = [{x.shape[0]}]; got {list(w.shape)} "
            "(solvers that drop samples that have ended: mode='masked' keeps them)"
        )


def _interval(interval: object) -> tuple[float, float]:
    if not isinstance(interval, Sequence) or isinstance(interval, str) or len(interval) != 2:
        raise TypeError(f"interval must be (low, high); got {check.describe(interval)}")
    low = check.non_negative("interval[0]", interval[0])
    high = check.non_negative("interval[1]", interval[1], infinite=True)
    check.below("interval[0]", low, "interval[1]", high)
    return low, high


def _rescaled(d: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """(1 - phi + phi std(D_c) / std(D)) D; a constant D stays as it is."""
    if not d[:1].numel():
        return d
    wide = torch.promote_types(d.dtype, torch.float32)
    wanted, found = (
        v.to(wide).reshape(d.shape[0], -1).std(1, correction=0) for v in (conditional, d)
    )
    ratio = torch.where(found > 0, wanted / found.where(found > 0, 1.0), 1.0)
    factor = (1.0 - phi + phi * ratio).reshape([-1] + [1] * (d.dim() - 1))
    return (d * factor).to(d.dtype)
