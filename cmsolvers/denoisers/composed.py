"""Denoisers made of other denoisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cmsolvers import checks as check
from cmsolvers.denoisers.pairing import take
from cmsolvers.denoisers.preconditioning import Preconditioned

SAMPLES = "_samples"
"""Extra argument of composed denoisers alone: which samples of the whole batch x is.

{"places": int64 [b], "batch": B}. Who drops or repeats samples does to it what is done to every
extra argument of B rows, and so tells denoisers that hold such tensors themselves.
"""


class Composed(ABC):
    """A denoiser `D(x, sigma, **extra_args)` that asks others.

    Samplers know the level as a number and hand it in beside the tensor, so that what depends on
    the level is settled on the host.
    """

    #: Dtype of the network's input, where one network of its own dtype is behind it.
    dtype: torch.dtype | None = None

    @abstractmethod
    def at(self, x: Tensor, sigma: Tensor, level: float | None, extra: Mapping[str, Any]) -> Tensor:
        """D for a checked x; sigma [B], and the same as a number where all samples share it."""

    def __call__(self, x: Tensor, sigma: float | Tensor, **extra_args: Any) -> Tensor:
        """x0 for x at level sigma.

        Args:
            x: [B, ...] in Karras coordinates.
            sigma: positive; a number or a tensor of shape [] or [B] on the device of x, whose
                entries are not read on the host.
            extra_args: handed to the denoisers behind it.

        Returns:
            Tensor like x.

        Raises:
            TypeError: x or sigma of the wrong kind; a denoiser behind it that returned something
                else than a floating tensor of at most the precision of x.
            ValueError: wrong shapes or devices, a level that is not positive.
        """
        check.state("x", x)
        given = check.level("sigma", sigma, x)
        if isinstance(given, Tensor):
            return self.at(x, given.expand(x.shape[0]), None, extra_args)
        levels = torch.full((x.shape[0],), given, dtype=x.dtype, device=x.device)
        return self.at(x, levels, given, extra_args)


def all_samples(denoiser: Any, x: Tensor) -> dict[str, Any]:
    """The extra argument that says that x is the whole batch, where the denoiser takes it."""
    if not isinstance(denoiser, Composed):
        return {}
    return {SAMPLES: {"places": torch.arange(x.shape[0], device=x.device), "batch": x.shape[0]}}


def own_rows(value: Any, extra: Mapping[str, Any]) -> Any:
    """Of what a denoiser holds for a whole batch, the rows of the samples that it is asked for."""
    samples = extra.get(SAMPLES)
    return value if samples is None else take(value, samples["batch"], samples["places"])


class Rewritten(Composed):
    """A denoiser whose output is changed.

    Args:
        inner: any denoiser.

    Raises:
        TypeError: inner cannot be called.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = check.function("denoiser", inner)
        self.dtype = inner.dtype if folds(inner) else None

    @abstractmethod
    def rewrite(self, x: Tensor, d: Tensor) -> Tensor:
        """The new D for the old one at x."""

    def at(self, x: Tensor, sigma: Tensor, level: float | None, extra: Mapping[str, Any]) -> Tensor:
        """As in `Composed`."""
        return self.rewrite(x, denoised(self.inner, x, sigma, level, extra))


def folds(denoiser: Any) -> bool:
    """Whether a sampler may call the network and do the rest of D itself.

    A subclass with a __call__ of its own (which clips, say) means that to be called.
    """
    return (
        isinstance(denoiser, Preconditioned) and type(denoiser).__call__ is Preconditioned.__call__
    )


def denoised(
    denoiser: Any, x: Tensor, sigma: Tensor, level: float | None, extra: Mapping[str, Any]
) -> Tensor:
    """D of any denoiser, checked; arguments as in `Composed.at`."""
    if isinstance(denoiser, Composed):
        return check.model_output("denoiser", denoiser.at(x, sigma, level, extra), x)
    extra = {name: value for name, value in extra.items() if name != SAMPLES}
    if level is not None and isinstance(denoiser, Preconditioned):
        d = denoiser(x, level, **extra)  # coefficients as numbers: no table on the device
    else:
        d = denoiser(x, sigma, **extra)
    return check.model_output("denoiser", d, x)
